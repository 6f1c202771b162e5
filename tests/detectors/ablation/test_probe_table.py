from __future__ import annotations

import pytest

from detectors.ablation.probe_record import Alignment, ProbeFigures, ProbeRecord
from detectors.ablation.probe_table import lines_of, notes_of, sheets_of


def record(arm: str, seed: int | None, right: float, cka: float | None = None, **figures: object) -> ProbeRecord:
    found = {
        "accuracy": right, "train_accuracy": 1.0, "held_out": 0.5, "chance": 0.25, "shuffled": 0.26, "strength": 0.1,
        "at_edge": False, "train_objects": 40, "objects": 20, "grid": (8, 8), "channels": 16, **figures,
    }  # fmt: skip
    alignment = {}
    if cka is not None:
        alignment["tiny"] = Alignment(plain=cka + 0.01, debiased=cka, plain_floor=0.2, debiased_floor=0.1, images=9)
    run = f"runs/{arm}/seed_{seed}" if arm in ("off", "gam") else None
    return ProbeRecord(arm=arm, seed=seed, run=run, figures=ProbeFigures.model_validate(found), alignment=alignment)


RECORDS = [
    record("off", 0, 0.50, 0.3),
    record("off", 1, 0.60, 0.4),
    record("off", 2, 0.40, 0.5),
    record("gam", 2, 0.43, 0.6),
    record("gam", 1, 0.62, 0.5),
    record("gam", 0, 0.51, 0.4),
    record("gam", 3, 0.00, 0.9),  # without a partner
    record("untrained", 0, 0.3, 0.2),
    record("teacher tiny", None, 0.7),
]


def test_differences_are_paired_by_seed() -> None:
    lines = {line.arm: line for line in lines_of(RECORDS, lambda record: 100 * record.figures.accuracy)}
    assert list(lines) == ["off", "gam", "untrained", "teacher tiny"]
    assert (lines["off"].mean, lines["off"].deviation) == pytest.approx((50, 10))
    assert lines["off"].difference is None
    assert lines["gam"].mean == pytest.approx((43 + 62 + 51) / 4)
    difference = lines["gam"].difference
    assert difference is not None
    assert difference.values == pytest.approx({0: 1, 1: 2, 2: 3})
    assert difference.mean == pytest.approx(2)
    # Student's t with 2 degrees of freedom is 4.3027 at 97.5 %; the deviation of 1, 2, 3 is 1.
    assert difference.t == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    alone = lines["untrained"].difference
    assert alone is not None
    assert (alone.mean, alone.t) == (pytest.approx(-20), None)
    assert lines["teacher tiny"].difference is None


def test_arms_without_a_common_seed_are_not_compared() -> None:
    lines = lines_of([*RECORDS[:3], record("gam", 7, 0.9)], lambda record: record.figures.accuracy)
    assert [(line.arm, line.difference) for line in lines] == [("off", None), ("gam", None)]


def test_tables_show_classes_right_and_cka() -> None:
    right, cka = sheets_of(RECORDS)
    assert right.header == ("features of", "runs", "right", "minus off [95 %]", "labels shuffled")
    assert right.rows == (
        ("off", "3", "50.0 ± 10.0", "", "26.0"),
        ("gam", "4", "39.0 ± 27.1", "+2.0 [-0.5, +4.5]", "26.0"),
        ("untrained", "1", "30.0", "-20.0", "26.0"),
        ("teacher tiny", "1", "70.0", "", "26.0"),
    )
    assert cka.title == "Linear CKA to tiny, debiased"
    assert cka.rows == (
        ("off", "3", "0.400 ± 0.100", "", "0.100", "0.410"),
        ("gam", "4", "0.600 ± 0.216", "+0.100 [+0.100, +0.100]", "0.100", "0.610"),
        ("untrained", "1", "0.200", "-0.100", "0.100", "0.210"),
    )


def test_what_limits_the_figures_is_said() -> None:
    usual, unpaired = notes_of(RECORDS)
    assert "40 training objects, 20 validation objects, maps of 8 × 8 cells; guessing gets 25.0 % right" in usual
    assert unpaired == "Compared by 3 seeds in common with off: gam."
    notes = notes_of([*RECORDS, record("gam", 4, 0.5, at_edge=True), record("teacher t", None, 0.5, at_edge=True)])
    assert notes[2].endswith("is the strongest or weakest on offer for: gam seed 4, teacher t.")
