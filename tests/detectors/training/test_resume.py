"""A run that is killed or stopped at any moment and resumed ends bit-identical to one that never was."""

import json
import os
import random
import re
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

EPOCHS = 4
# Everything that draws: workers, mosaic and mixup, several sizes, denoising; and checkpoints inside epochs
SETTINGS: dict[str, Any] = {
    "epochs": EPOCHS, "plain_epochs": 1, "dense_until": 2, "workers": 2, "multi_scale": 2, "save_every": 2,
}  # fmt: skip


def run(data: Path, output: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    words = json.dumps({"data": str(data), "output": str(output), **SETTINGS, **settings})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, tiny_run.__file__, words], env=environment, capture_output=True, text=True, check=False
    )


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
    done = run(toy, output)
    assert done.returncode == 0, done.stderr
    return files(output)


def moments() -> list[Any]:
    """Return the moments to be killed at: some that are known to be delicate, and ten that are drawn."""
    delicate = [
        ("step", 2),  # in the first epoch, before there is any checkpoint
        ("file", 3),  # while the first checkpoint is written
        ("checkpoint", 3),  # the best one is complete, but not yet that of the epoch
        ("save", 3),  # the metrics of the epoch are written, its checkpoints are not
    ]
    # Steps, files and checkpoints of the whole run
    draw = random.Random(0)
    drawn = [(moment, draw.randint(1, most)) for moment, most in [("step", 12), ("file", 36), ("checkpoint", 8)] * 4]
    return [*delicate, *(pytest.param(moment, marks=pytest.mark.slow) for moment in drawn[:10])]


@pytest.mark.parametrize("kill_at", moments(), ids=lambda moment: f"{moment[0]} {moment[1]}")
def test_killed_and_resumed(toy: Path, tmp_path: Path, undisturbed: dict[str, bytes], kill_at: tuple[str, int]) -> None:
    killed = run(toy, tmp_path, kill_at=kill_at)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = run(toy, tmp_path, resume=True)
    assert resumed.returncode == 0, resumed.stderr
    ours = files(tmp_path)
    assert ours.keys() == undisturbed.keys()
    assert [name for name in ours if ours[name] != undisturbed[name]] == []


def test_several_teachers_that_look_at_every_other_batch_are_resumed(toy: Path, tmp_path: Path) -> None:
    teaching = {"teacher": "tiny=2,tiny2", "objective": "mse", "teacher_every": 2, "epochs": 2, "dense_until": 1}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(toy, whole, **teaching).returncode == 0
    assert run(toy, broken, **teaching, kill_at=["step", 5]).returncode == -signal.SIGKILL
    resumed = run(toy, broken, **teaching, resume=True)
    assert resumed.returncode == 0, resumed.stderr
    ours, expected = files(broken), files(whole)
    assert [name for name in ours.keys() | expected.keys() if ours.get(name) != expected.get(name)] == []
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    looked = [2, 1]  # of three steps an epoch: the first and the third, then the fifth
    for line, steps in zip(lines, looked, strict=True):
        assert line["semantic_loss"] * line["weight"] * steps / 3 == pytest.approx(line["loss_semantic"])


@pytest.mark.parametrize(
    ("number", "stop_at", "saved"),
    [
        (signal.SIGTERM, ("step", 1), "epoch_0000_step_00000001"),
        (signal.SIGINT, ("step", 5), "epoch_0001_step_00000005"),
        (signal.SIGTERM, ("batch", 1), "epoch_0000_step_00000003"),  # of the first evaluation
        (signal.SIGTERM, ("batch", 4), "epoch_0001"),  # the last of the second
        (signal.SIGTERM, ("batch", 7), "epoch_0003_step_00000012"),  # of the last
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_stopped_and_resumed(
    toy: Path, tmp_path: Path, undisturbed: dict[str, bytes], number: int, stop_at: tuple[str, int], saved: str
) -> None:
    stopped = run(toy, tmp_path, stop_at=[*stop_at, int(number)])
    assert stopped.returncode == 128 + number, stopped.stderr
    checkpoint = tmp_path / "checkpoints" / saved
    assert checkpoint.is_dir()
    assert re.search(
        rf"stopped by {signal.Signals(number).name} after step \d+; everything is in {checkpoint}\. "
        r"Go on with: .* --resume",
        stopped.stderr,
    )
    assert (tmp_path / "report.html").exists()
    resumed = run(toy, tmp_path, resume=True)
    assert resumed.returncode == 0, resumed.stderr
    ours = files(tmp_path)
    assert [name for name in ours.keys() & undisturbed.keys() if ours[name] != undisturbed[name]] == []
    assert undisturbed.keys() <= ours.keys() | {name for name in undisturbed if "_step_" in name}


def test_a_second_signal_ends_the_run_at_once(toy: Path, tmp_path: Path) -> None:
    assert run(toy, tmp_path, stop_at=["step", 2, int(signal.SIGINT), 2]).returncode == -signal.SIGINT
    assert not list((tmp_path / "checkpoints").glob("epoch_0000_step_00000002"))


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before_it(
    toy: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    full = run(toy, tmp_path, full_at=9)  # the second checkpoint's files do not fit
    assert full.returncode == 1
    (line,) = re.findall(r"CheckpointError: (.*)", full.stderr)
    assert re.search(r"cannot write the checkpoint .*: .* is intact: make room and go on with --resume", line)
    assert run(toy, tmp_path, resume=True).returncode == 0
    ours = files(tmp_path)
    assert [name for name in ours.keys() | undisturbed.keys() if ours.get(name) != undisturbed.get(name)] == []


def test_the_undisturbed_run_moved_everything(undisturbed: dict[str, bytes]) -> None:
    lines = [json.loads(line) for line in undisturbed["metrics.jsonl"].splitlines()]
    assert [line["epoch"] for line in lines] == list(range(EPOCHS))
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
