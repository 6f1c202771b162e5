"""One run: paired with the other arms of its seed, gone on with where it stopped, and summed up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from support.tiny_run import register_tiny_teacher, tiny_recipe
from torch import Tensor

from detectors.ablation import trial
from detectors.ablation.arms import Arm
from detectors.ablation.grid import check_arm
from detectors.ablation.record import TrialRecord
from detectors.data.toy import write_toy_dataset
from detectors.training import assemble
from detectors.training.recipe import Recipe
from detectors.training.report_files import RunFiles
from vfmdistill.errors import InputError

ARMS = [
    Arm(name="off", kind="off", settings={"teacher": None}),
    Arm(name="tiny+fixed", kind="method", settings={"teacher": "tiny", "rho": "fixed"}, baseline="off"),
    Arm(name="tiny+gam", kind="method", settings={"teacher": "tiny", "rho": "auto", "projector": "mlp"},
        baseline="off"),
    Arm(name="shuffled", kind="control", settings={"teacher": "tiny", "teacher_control": "shuffled"}, baseline="off"),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_tiny_teacher()
    return write_toy_dataset(
        tmp_path_factory.mktemp("ablation") / "data", train_images=13, val_images=5, image_size=64, seed=0
    )


def recipe_of(data: Path, output: Path, **fields: Any) -> Recipe:
    settings: dict[str, Any] = {"epochs": 2, "mosaic": 0.5, "augmented_from": 0, "dense_until": 1} | fields
    return tiny_recipe(data, output, **settings)


def first_steps(recipe: Recipe) -> dict[str, Any]:
    """Return what two steps of a run begin with and what comes of the first."""
    with assemble(recipe) as trainer:
        weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        trainer.model.train()
        batches, outcomes = [], []
        for number, parts in zip(range(2), trainer.train_loader.epoch(0), strict=False):
            batches.append(parts)
            outcomes.append(trainer.train_step(parts, number))
    return {"weights": weights, "batches": batches, "outcomes": outcomes}


def test_all_arms_of_a_seed_share_weights_images_and_noise(data: Path, tmp_path: Path) -> None:
    shared = recipe_of(data, tmp_path)
    runs = {arm.name: first_steps(check_arm(shared, arm, seed=3, output=tmp_path / arm.name)) for arm in ARMS}
    off = runs.pop("off")
    for name, run in runs.items():
        assert run["weights"].keys() == off["weights"].keys()
        assert all(torch.equal(tensor, run["weights"][key]) for key, tensor in off["weights"].items()), name
        for ((images, targets),), ((others, their),) in zip(off["batches"], run["batches"], strict=True):
            assert torch.equal(images, others), name
            for target, other in zip(targets, their, strict=True):
                assert torch.equal(target["boxes"], other["boxes"]), name
                assert torch.equal(target["labels"], other["labels"]), name
        for ours, theirs in zip(off["outcomes"], run["outcomes"], strict=True):
            assert torch.equal(ours.rng.cpu, theirs.rng.cpu), name  # which the denoising noise is drawn from
        first: dict[str, Tensor] = dict(run["outcomes"][0].losses)
        assert first.pop("loss_semantic") > 0
        assert first.keys() == off["outcomes"][0].losses.keys()
        assert "loss_mal_dn_0" in first or any("dn" in key for key in first)
        assert all(torch.equal(value, first[key]) for key, value in off["outcomes"][0].losses.items()), name
    other = first_steps(check_arm(shared, ARMS[0], seed=4, output=tmp_path / "other"))
    assert not torch.equal(off["batches"][0][0][0], other["batches"][0][0][0])
    assert not all(torch.equal(tensor, other["weights"][key]) for key, tensor in off["weights"].items())


def test_a_run_is_trained_once_and_summed_up(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny+gam" / "seed_1"
    recipe = check_arm(recipe_of(data, tmp_path), ARMS[2], seed=1, output=folder)
    trial.train(recipe)
    record = trial.record_of(folder, arm="tiny+gam", seed=1, root=tmp_path)
    lines = RunFiles(folder).epochs
    assert (record.arm, record.seed, record.folder) == ("tiny+gam", 1, "tiny+gam/seed_1")
    assert record.figures["AP"] == lines[-1]["AP"]
    assert set(record.figures) <= {key for key in lines[-1] if key.startswith("A")}
    assert record.per_class.keys() == lines[-1]["AP_per_class"].keys()
    assert record.best["AP"] == max(line["AP"] for line in lines)
    assert [epoch.epoch for epoch in record.epochs] == [0, 1]
    assert [epoch.weight for epoch in record.epochs] == [line["weight"] for line in lines]
    assert all(0 < (epoch.share or 0) < 100 and (epoch.semantic_loss or 0) > 0 for epoch in record.epochs)
    assert record.step_seconds is not None
    assert record.step_seconds > 0
    assert record.recipe["seed"] == 1
    assert [spec["name"] for spec in record.teachers] == ["tiny"]
    assert "torch" in record.environment["versions"]
    assert TrialRecord.model_validate(json.loads(record.model_dump_json())) == record
    monkeypatch.setattr(trial, "assemble", lambda recipe: pytest.fail("trained again"))
    trial.train(recipe)
    trial.drop_checkpoints(folder)
    assert not (folder / "checkpoints").exists()
    assert (folder / "pretrained").is_dir()
    trial.train(recipe)  # it is still known to be finished


def test_a_run_that_was_begun_is_gone_on_with(data: Path, tmp_path: Path) -> None:
    whole = check_arm(recipe_of(data, tmp_path), ARMS[1], seed=2, output=tmp_path / "whole")
    trial.train(whole)
    tests = Path(__file__).parents[2]
    words = whole.model_dump(mode="json") | {"output": str(tmp_path / "killed"), "kill_at": ["checkpoint", 1]}
    killed = subprocess.run(
        [sys.executable, str(tests / "support" / "tiny_run.py"), json.dumps(words)],
        env={**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}, check=False, capture_output=True,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr.decode()
    with pytest.raises(InputError, match="no finished and evaluated run; train it to its end"):
        trial.record_of(tmp_path / "killed", arm="tiny+fixed", seed=2, root=tmp_path)
    assert len(RunFiles(tmp_path / "killed").epochs) == 1
    trial.train(whole.model_copy(update={"output": tmp_path / "killed"}))
    records = [trial.record_of(tmp_path / name, arm="a", seed=2, root=tmp_path) for name in ("whole", "killed")]
    assert records[0].figures == records[1].figures
    assert records[0].epochs == records[1].epochs


def test_a_folder_with_a_run_of_another_recipe_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = check_arm(
        recipe_of(data, tmp_path, epochs=1, dense_until=0, plain_epochs=0), ARMS[0], seed=0, output=tmp_path / "run"
    )
    trial.train(recipe)
    monkeypatch.setattr(trial, "assemble", lambda recipe: pytest.fail("trained again"))
    trial.train(recipe.model_copy(update={"workers": 2, "check_data": False}))  # elsewhere, but the same
    with pytest.raises(InputError, match=r"holds a run of another recipe: epochs is 3, was 1\. .* another --output"):
        trial.train(recipe.model_copy(update={"epochs": 3}))


def test_two_processes_do_not_work_in_one_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = check_arm(recipe_of(data, tmp_path), ARMS[0], seed=0, output=tmp_path / "run")
    monkeypatch.setattr(trial, "_PATIENCE", 0.1)
    with FileLock(tmp_path / "run.run.lock"), pytest.raises(trial.FolderBusy, match="another process works in"):
        trial.train(recipe)
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "usage: python -m detectors.ablation.trial FOLDER/recipe.json"),
        (["{}"], 1, "error: the recipe names no data"),
    ],
)
def test_as_a_program_it_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, says: str
) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(recipe_of(tmp_path, tmp_path / "run").model_copy(update={"data": None}).model_dump_json())
    assert trial.main([str(file)] if words else []) == status
    assert says in capsys.readouterr().err
