from __future__ import annotations

import pytest
from support.page import parse_page

from detectors.ablation.arms import Arm
from detectors.ablation.record import AblationRecord, EpochRecord, TrialRecord
from detectors.ablation.report_curves import precision_curves, seeds_line, teaching_curves

ARMS = [
    Arm(name="off", kind="off", settings={}),
    Arm(name="gam", kind="method", settings={}, baseline="off"),
    Arm(name="late", kind="method", settings={}, baseline="off"),
]


def run(arm: str, seed: int, *precision: float | None, weight: float | None = None) -> TrialRecord:
    epochs = [EpochRecord(epoch=epoch, AP=ap, weight=weight) for epoch, ap in enumerate(precision)]
    return TrialRecord(arm=arm, seed=seed, folder=f"{arm}/seed_{seed}", figures={"AP": 0.5}, epochs=epochs)


RECORD = AblationRecord(
    name="test",
    arms=ARMS,
    recipe={},
    records=[
        run("off", 0, None, 0.2, 0.4), run("off", 1, None, 0.4, 0.6),
        run("gam", 0, None, 0.3, 0.5, weight=20.0), run("gam", 1, None, 0.5, 0.9, weight=10.0),
        run("late", 7, None, 0.9, 0.9, weight=5.0),
    ],
)  # fmt: skip


def test_a_line_is_the_mean_between_the_extremes() -> None:
    line = seeds_line("gam", [each for each in RECORD.records if each.arm == "gam"], "AP", scale=100)
    assert dict(line.values) == pytest.approx({1: 40.0, 2: 70.0})
    assert line.band is not None
    assert line.band[2] == pytest.approx((50.0, 90.0))


def test_epochs_that_a_seed_lacks_are_left_out() -> None:
    line = seeds_line("off", [run("off", 0, 0.2, 0.4), run("off", 1, 0.4)], "AP")
    assert dict(line.values) == pytest.approx({0: 0.3})


def test_one_seed_has_no_band() -> None:
    assert seeds_line("off", [run("off", 0, 0.2, 0.4)], "AP").band is None


def test_an_arm_stands_beside_its_baseline_over_the_seeds_of_both() -> None:
    root = parse_page(precision_curves(RECORD))
    assert [node.text for node in root.all("figcaption")] == ["AP of gam"]  # the third shares no seed
    assert [node.text for node in root.all("li")] == ["off 50", "gam 70"]
    assert [path.attributes["class"] for path in root.all("path", "band")] == ["band s0", "band s1"]


def test_what_the_teaching_did_is_shown_of_arms_with_a_teacher() -> None:
    root = parse_page(teaching_curves(RECORD))
    assert [node.text for node in root.all("figcaption")] == ["λ"]
    assert [node.text for node in root.all("li")] == ["gam 15", "late 5"]


def test_nothing_of_an_ablation_without_runs() -> None:
    empty = RECORD.model_copy(update={"records": []})
    assert precision_curves(empty) == ""
    assert teaching_curves(empty) == ""
