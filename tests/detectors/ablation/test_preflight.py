from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detectors.ablation.arms import Arm
from detectors.ablation.preflight import check_ablation
from detectors.data.toy import write_toy_dataset
from detectors.training.recipe import recipe_for
from vfmdistill.errors import DistillError

OFF = Arm(name="off", kind="off", settings={"teacher": None})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=2, val_images=1, image_size=64)


def arm(**settings: Any) -> Arm:
    return Arm(name="taught", kind="method", settings={"teacher": "dinov2_vits14", **settings}, baseline="off")


def test_what_can_be_trained_passes(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.touch()
    recipe = recipe_for("deim_n", data=data, output=tmp_path / "out", batch_size=4)
    check_ablation(recipe, [OFF, arm(teacher_weights=str(file)), arm(teacher_control="shuffled")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        ({}, {"teacher": "dinov2_vits15"}, "unknown teacher 'dinov2_vits15'"),
        ({}, {"teacher_weights": "no/such.pth"}, "arm taught: there is no file no/such.pth"),
        ({"batch_size": 3}, {"teacher_control": "shuffled"}, "arm taught: batches of 3, .* expected at least 4"),
        ({"data": Path("nowhere")}, {}, "nowhere"),
        ({"output": Path(__file__)}, {}, "is a file; name a folder"),
    ],
)
def test_what_would_fail_in_every_run_is_said_before(
    fields: dict[str, Any], settings: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    recipe = recipe_for("deim_n", **{"data": data, "output": tmp_path / "out", **fields})
    with pytest.raises(DistillError, match=message):
        check_ablation(recipe, [OFF, arm(**settings)])
