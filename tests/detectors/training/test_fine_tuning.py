"""A detector is trained on one data set and goes on with another: category ids, class rows, and what is shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_run import tiny_recipe
from torch import Tensor

from detectors.detector import Detector
from detectors.pretrained import from_pretrained
from detectors.training import assemble, load_checkpoint
from detectors.training.initial_weights import load_initial_weights
from vfmdistill.errors import InputError, WeightsError

SHORT = {"epochs": 1, "plain_epochs": 0}


def with_categories(toy: Path, folder: Path, names: dict[int, str]) -> Path:
    """Write the toy data set with other categories, which its boxes get in turn."""
    folder.mkdir()
    (folder / "images").symlink_to(toy / "images")
    for split in ("train", "val"):
        content = json.loads((toy / f"instances_{split}.json").read_text())
        content["categories"] = [{"id": key, "name": name} for key, name in names.items()]
        for index, entry in enumerate(content["annotations"]):
            entry["category_id"] = list(names)[index % len(names)]
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def rows(model: Detector, name: str) -> list[Tensor]:
    """Return everything that a detector knows about one class."""
    assert model.class_names is not None
    index = model.class_names.index(name)
    state = model.state_dict()
    keys = [key for key in state if "score_head" in key or "denoising_embedding" in key]
    assert len(keys) == 2 + 2 * 3 + 1, "selection, three layers, embedding"
    return [state[key][index] for key in keys]


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run on spoons (7), forks (90) and knives (13), and its results in COCO's format."""
    root = tmp_path_factory.mktemp("cutlery")
    data = with_categories(toy, root / "data", {7: "spoon", 90: "fork", 13: "knife"})
    with assemble(tiny_recipe(data, root / "run", **SHORT)) as trainer:
        trainer.fit()
        return root / "run", json.loads(json.dumps(trainer.validation.evaluator.results()))


def test_results_have_the_data_sets_category_ids(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    _, results = trained
    assert {result["category_id"] for result in results} == {7, 90, 13}


def test_names_and_ids_survive_saving_and_loading(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    run, _ = trained
    for model in (from_pretrained(run / "pretrained"), load_checkpoint(run / "checkpoints" / "best_0000")):
        assert dict(zip(model.category_ids or [], model.class_names or [], strict=True)) == {
            7: "spoon", 13: "knife", 90: "fork",
        }  # fmt: skip


def test_what_is_shipped_is_the_best_average_and_nothing_else(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    run, _ = trained
    assert sorted(path.name for path in (run / "pretrained").iterdir()) == ["config.json", "model.safetensors"]
    shipped = load_file(run / "pretrained" / "model.safetensors")
    averaged = load_checkpoint(run / "checkpoints" / "best_0000").state_dict()
    assert shipped.keys() == averaged.keys()
    assert all(torch.equal(shipped[key], averaged[key]) for key in averaged)
    config = json.loads((run / "pretrained" / "config.json").read_text())
    assert "tiny" not in json.dumps(config), "the teacher's name"
    assert config["options"]["input_size"] == [64, 64]


@pytest.mark.parametrize("part", ["pretrained", "checkpoints/best_0000", "."])
def test_fine_tuning_keeps_the_rows_of_known_classes(
    toy: Path, trained: tuple[Path, list[dict[str, Any]]], tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained[0] / part
    old = from_pretrained(trained[0] / "pretrained")
    data = with_categories(toy, tmp_path / "data", {13: "knife", 4: "ladle"})
    recipe = tiny_recipe(data, tmp_path / "run", weights=source, pretrained_backbone=True, **SHORT)
    with assemble(recipe) as trainer:
        said = capsys.readouterr().out
        assert f"starting from {source}" in said
        assert "1 kept: knife" in said
        assert "1 new: ladle" in said
        assert "2 dropped: spoon, fork" in said
        assert (trainer.model.class_names, trainer.model.category_ids) == (["ladle", "knife"], [4, 13])
        for model in (trainer.model, trainer.average.model):
            for ours, theirs in zip(rows(model, "knife"), rows(old, "knife"), strict=True):
                assert torch.equal(ours, theirs)
        fresh = [row for row in rows(trainer.model, "ladle") if row.ndim]  # biases of new classes are all the prior's
        for name in ("spoon", "knife", "fork"):
            strangers = [row for row in rows(old, name) if row.ndim]
            assert not any(torch.equal(ours, theirs) for ours, theirs in zip(fresh, strangers, strict=True))
        ours, theirs = trainer.model.state_dict(), old.state_dict()
        shared = [key for key in theirs if "score_head" not in key and "denoising_embedding" not in key]
        assert all(torch.equal(ours[key], theirs[key]) for key in shared)
        trainer.fit()
        assert {result["category_id"] for result in trainer.validation.evaluator.results()} == {13, 4}
    assert from_pretrained(tmp_path / "run" / "pretrained").category_ids == [4, 13]


def test_a_resumed_run_does_not_look_for_the_weights_that_it_started_from(
    toy: Path, trained: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    recipe = tiny_recipe(toy, tmp_path, weights=trained[0] / "pretrained", **SHORT)
    with assemble(recipe) as trainer:
        trainer.fit()
    moved = recipe.model_copy(update={"resume": True, "weights": Path("moved")})
    with assemble(moved) as trainer:
        assert trainer.epoch == 1


def test_weights_of_another_kind_are_refused(
    toy: Path, trained: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="there is no file or folder nowhere to start from"):
        assemble(tiny_recipe(toy, tmp_path, weights="nowhere"))
    import detectors

    other = detectors.build("dfine_n", class_names=["knife"])
    for part in ("pretrained", "checkpoints/best_0000"):
        with pytest.raises(WeightsError, match=r"is not built like this 'dfine_n': .*activation='silu'"):
            load_initial_weights(other, trained[0] / part)
    damaged = tmp_path / "best_0000"
    damaged.mkdir()
    (damaged / "state.json").write_text("{}")
    with pytest.raises(InputError, match="not a complete checkpoint"):
        load_initial_weights(other, damaged)
