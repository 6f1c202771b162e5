from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_run import register_tiny_teacher, tiny_recipe

from detectors.ablation import gallery as room
from detectors.ablation import trial
from detectors.ablation.arms import Arm
from detectors.ablation.comparison import compare
from detectors.ablation.gallery import gallery
from detectors.ablation.record import AblationRecord
from detectors.data.toy import write_toy_dataset
from vfmdistill.errors import InputError

ARMS = [
    Arm(name="off", kind="off", settings={"teacher": None}),
    Arm(name="tiny+fixed", kind="method", settings={"teacher": "tiny"}, baseline="off"),
    Arm(name="shuffled", kind="control", settings={"teacher_control": "shuffled"}, baseline="off"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[AblationRecord, Path]:
    """An ablation with one seed of two arms, trained for one epoch, with the records of another that lies elsewhere."""
    register_tiny_teacher()
    root = tmp_path_factory.mktemp("gallery")
    data = write_toy_dataset(root / "data", train_images=8, val_images=5, image_size=64, seed=0)
    records = []
    for arm in ARMS[:2]:
        settings: dict[str, Any] = {"teacher": None, "epochs": 1, **arm.settings}
        trial.train(tiny_recipe(data, root / arm.name / "seed_1", seed=1, **settings))
        records.append(trial.record_of(root / arm.name / "seed_1", arm=arm.name, seed=1, root=root))
        records.append(records[-1].model_copy(update={"seed": 0, "folder": f"{arm.name}/seed_0"}))
    return AblationRecord(name="test", arms=ARMS, recipe={}, records=records), root


def test_features_of_teacher_and_students_of_the_seed_that_is_there(
    trained: tuple[AblationRecord, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, root = trained
    monkeypatch.setattr(room, "THRESHOLD", 0.0)  # after an epoch, no detector is sure of anything
    said: list[str] = []
    features, *detections = gallery(record, compare(record), root, say=said.append)
    assert said == []
    assert "image, teacher tiny, off, tiny+fixed." in features.caption
    assert detections
    assert all([name for name, _ in picture.panels] == ["off", "tiny+fixed", "annotation"] for picture in detections)


def test_why_there_are_no_pictures_is_said(trained: tuple[AblationRecord, Path], tmp_path: Path) -> None:
    record, _ = trained
    said: list[str] = []
    assert gallery(record, compare(record), tmp_path, say=said.append) == []
    assert said == [f"no pictures: {tmp_path} holds no seed of both off and tiny+fixed with its trained detectors."]
    alone = record.model_copy(update={"records": [run for run in record.records if run.arm == "off"]})
    assert gallery(alone, compare(alone), tmp_path, say=said.append) == []
    assert said[1] == "no pictures: no arm with a teacher shares a seed with its baseline."


def test_data_that_is_gone_costs_the_pictures_and_not_the_report(trained: tuple[AblationRecord, Path]) -> None:
    record, root = trained
    runs = [run.model_copy(update={"recipe": {**run.recipe, "data": "gone"}}) for run in record.records]
    moved = record.model_copy(update={"records": runs})
    said: list[str] = []
    assert gallery(moved, compare(moved), root, say=said.append) == []
    assert said[0].startswith("no pictures: ")
    assert "gone" in said[0]


def test_an_arm_that_is_not_there_is_refused(trained: tuple[AblationRecord, Path]) -> None:
    record, root = trained
    with pytest.raises(InputError, match="no arm 'off' with a teacher; expected one of tiny\\+fixed, shuffled"):
        gallery(record, compare(record), root, reference="off")
