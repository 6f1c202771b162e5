from __future__ import annotations

import pytest

from detectors.ablation import report_tables as tables
from detectors.ablation.comparison import compare
from detectors.ablation.record import AblationRecord

from .conftest import Ablation


@pytest.fixture(scope="module")
def record(ablation: Ablation) -> AblationRecord:
    points = {"off": [40.0, 42.0], "vit+gam": [41.0, 44.0], "shuffled:vit+gam": [40.0, 41.0]}
    made = ablation(points, missing=[("vit+gam", 2)])
    spec = {"name": "vit", "license": "apache-2.0", "model_id": "vit_small", "params": 22_056_576}
    runs = [
        run.model_copy(update={"teachers": [] if run.arm == "off" else [spec], "seconds": 60.0, "host": "one",
                               "best": {"AP": 0.5, "epoch": 3}})
        for run in made.records
    ]  # fmt: skip
    return made.model_copy(update={"records": runs})


def test_differences_have_both_intervals_and_both_p(record: AblationRecord) -> None:
    differences, controls = tables.difference_sheets(compare(record))
    t = "−4.85 … +7.85"  # 1.5 ± 12.706 · 0.7071 / √2
    assert differences.rows[0] == (
        "vit+gam", "off", "2", "+1.50", t, "–", "0.205", "0.410", "+1.50 ± 6.35", "+1.50 ± 6.35", "46",
    )  # fmt: skip
    assert differences.rows[1][:4] == ("shuffled:vit+gam", "off", "2", "−0.50")
    assert [row[:4] for row in controls.rows] == [("vit+gam", "shuffled:vit+gam", "2", "+2.00")]
    assert {len(row) for row in differences.rows} == {len(differences.header)}


def test_arms_have_means_and_deviations(record: AblationRecord, ablation: Ablation) -> None:
    sheet = tables.arms_sheet(compare(record))
    assert sheet.rows[:2] == (
        ("off", "2", "41.00 ± 1.41", "61.00 ± 1.41", "46.00 ± 1.41"),
        ("vit+gam", "2", "42.50 ± 2.12", "62.50 ± 2.12", "47.50 ± 2.12"),
    )
    single = tables.arms_sheet(compare(ablation({"off": [40.0]})))
    assert single.rows == (("off", "1", "40.00", "60.00", "45.00"),)


def test_classes_have_the_paired_difference_in_brackets(record: AblationRecord) -> None:
    rows = tables.class_sheet(compare(record)).rows
    assert rows == (
        ("ace", "51.0", "52.5 (+1.5)", "50.5 (−0.5)"),
        ("king", "31.0", "32.5 (+1.5)", "30.5 (−0.5)"),
        ("joker", "–", "–", "–"),
    )


def test_cost_is_told_beside_the_baselines(record: AblationRecord) -> None:
    slow = [run.model_copy(update={"step_seconds": 2.1}) if run.arm == "vit+gam" else run for run in record.records]
    changed = record.model_copy(update={"records": slow})
    rows = tables.cost_sheet(changed, compare(changed)).rows
    assert rows[0] == ("off", "1.500 s", "–", "0 MiB (process)", "1 min 0 s")
    assert rows[1][:3] == ("vit+gam", "2.100 s", "1.40 ×")


def test_every_run_and_every_missing_one_is_named(record: AblationRecord) -> None:
    rows = tables.runs_sheet(record).rows
    assert [row[:2] for row in rows] == [
        ("0", "off"), ("0", "vit+gam"), ("0", "shuffled:vit+gam"), ("1", "off"), ("1", "vit+gam"),
        ("1", "shuffled:vit+gam"),
    ]  # fmt: skip
    assert rows[1][2:] == ("one", "41.00", "61.00", "46.00", "50.00 (3)", "1 min 0 s")
    assert tables.missing_sheet(record).rows == (("vit+gam", "2", "waiting"),)


def test_teachers_have_their_licences(record: AblationRecord) -> None:
    assert tables.teacher_sheet(record).rows == (("vit", "apache-2.0", "vit_small", "22.1 M"),)
    unknown = [run.model_copy(update={"teachers": [{"name": "own", "license": None}]}) for run in record.records]
    rows = tables.teacher_sheet(record.model_copy(update={"records": unknown})).rows
    assert rows == (("own", "not stated", "–", "–"),)


def test_arms_are_explained(record: AblationRecord) -> None:
    rows = tables.settings_sheet(record).rows
    assert rows[0] == ("off", "off", "–", "teacher = –")
    assert rows[2] == ("shuffled:vit+gam", "control, beside vit+gam", "off", "")
