"""A run that is killed at any moment and resumed ends bit-identical to one that was never killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import tiny_run
from support.tiny_run import tiny_recipe

from detectors.training import assemble
from vfmdistill.errors import InputError


def run(data: Path, output: Path, **settings: Any) -> int:
    words = json.dumps({"data": str(data), "output": str(output), **settings})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, tiny_run.__file__, words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(done.stderr)
    return done.returncode


def files(output: Path) -> dict[str, bytes]:
    """Return everything that a run must leave the same: weights, average, optimizer, injectors, λ, metrics."""
    found = {str(path.relative_to(output)): path.read_bytes() for path in (output / "checkpoints").rglob("*.*")}
    for name in [name for name in found if name.endswith(".json")]:
        state = json.loads(found[name])
        state["recipe"] = {k: v for k, v in state["recipe"].items() if k not in ("output", "resume")}
        found[name] = json.dumps(state).encode()
    return found | {"metrics.jsonl": (output / "metrics.jsonl").read_bytes()}


@pytest.fixture(scope="module")
def undisturbed(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed")
    assert run(toy, output) == 0
    return files(output)


MOMENTS = [
    ("step", 2),  # in the first epoch, before there is any checkpoint
    ("step", 5),
    ("step", 8),  # in the last, plain epoch
    ("file", 3),
    ("file", 8),
    ("checkpoint", 1),
    ("checkpoint", 3),
    ("save", 2),
]


@pytest.mark.parametrize("kill_at", MOMENTS, ids=lambda moment: f"{moment[0]} {moment[1]}")
def test_killed_and_resumed(toy: Path, tmp_path: Path, undisturbed: dict[str, bytes], kill_at: tuple[str, int]) -> None:
    assert run(toy, tmp_path, kill_at=kill_at) == -signal.SIGKILL
    assert run(toy, tmp_path, resume=True) == 0
    ours = files(tmp_path)
    assert ours.keys() == undisturbed.keys()
    assert [name for name in ours if ours[name] != undisturbed[name]] == []


def test_the_undisturbed_run_moved_everything(undisturbed: dict[str, bytes]) -> None:
    lines = [json.loads(line) for line in undisturbed["metrics.jsonl"].splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert len({line["weight"] for line in lines}) > 1
    assert all(0 < line["share"] < 100 for line in lines)
    assert {name.split("/")[1][:5] for name in undisturbed if "/" in name} == {"epoch", "best_"}


def test_a_folder_with_a_run_is_not_overwritten_and_other_settings_do_not_continue_it(
    toy: Path, tmp_path: Path
) -> None:
    with assemble(tiny_recipe(toy, tmp_path, epochs=1, plain_epochs=0)) as trainer:
        trainer.fit()
    with pytest.raises(InputError, match=r"holds a run already: continue it with --resume"):
        assemble(tiny_recipe(toy, tmp_path, epochs=1, plain_epochs=0))
    with pytest.raises(
        InputError, match=r"learning_rate: the checkpoint has 0.0008, now 0.5; seed: the checkpoint has 0, now 1"
    ):
        assemble(tiny_recipe(toy, tmp_path, epochs=1, plain_epochs=0, learning_rate=0.5, seed=1, resume=True))


def test_checkpoint_of_other_classes_is_refused(toy: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(toy, tmp_path / "run", epochs=1, plain_epochs=0)) as trainer:
        trainer.fit()
    other = tmp_path / "other"
    other.mkdir()
    (other / "images").symlink_to(toy / "images")
    for split in ("train", "val"):
        content = json.loads((toy / f"instances_{split}.json").read_text())
        content["categories"][0]["name"] = "zeppelin"
        (other / f"instances_{split}.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"classes: the checkpoint has .* the data .*zeppelin"):
        assemble(tiny_recipe(other, tmp_path / "run", epochs=1, plain_epochs=0, resume=True))


def test_other_images_do_not_continue_a_run(toy: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(toy, tmp_path / "run", epochs=1, plain_epochs=0)) as trainer:
        trainer.fit()
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    (fewer / "images").symlink_to(toy / "images")
    content = json.loads((toy / "instances_train.json").read_text())
    gone = content["images"].pop()["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != gone]
    (fewer / "instances_train.json").write_text(json.dumps(content))
    (fewer / "instances_val.json").write_text((toy / "instances_val.json").read_text())
    with pytest.raises(InputError, match="data: the training images or boxes are others than the checkpoint's"):
        assemble(tiny_recipe(fewer, tmp_path / "run", epochs=1, plain_epochs=0, resume=True))


def test_resuming_in_a_folder_that_is_not_there(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        assemble(tiny_recipe(toy, tmp_path / "nowhere", resume=True))


def test_resuming_what_has_ended_changes_nothing(toy: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(toy, tmp_path, epochs=1, plain_epochs=0)) as trainer:
        figures = trainer.fit()
    before = files(tmp_path)
    with assemble(tiny_recipe(toy, tmp_path, epochs=1, plain_epochs=0, resume=True)) as trainer:
        assert trainer.fit() == figures
    assert files(tmp_path) == before
