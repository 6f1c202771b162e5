from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_detector import tiny_detector
from torch.utils.data import DataLoader

import detectors
from detectors.data import CocoDataset, collate, eval_transform, locate_split, write_toy_dataset
from detectors.data.toy_scene import SHAPES
from detectors.evaluation import CocoEvaluator
from detectors.pretrained import save_pretrained
from detectors.training.checkpoint import write_checkpoint
from vfmdistill.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate.py"


def main(*words: object) -> dict[str, Any]:
    report: dict[str, Any] = runpy.run_path(str(EXAMPLE))["main"]([str(word) for word in words])
    return report


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=3, val_images=6, image_size=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(tiny_detector(), folder)
    return folder


def evaluated(data: Path, split: str = "val") -> CocoEvaluator:
    """Evaluate the tiny detector as training does."""
    network = tiny_detector()
    dataset = CocoDataset(*locate_split(data, split), eval_transform(network.spec.input_size))
    evaluator = CocoEvaluator(dataset.annotation_file, dataset.category_ids)
    for images, targets in DataLoader(dataset, batch_size=4, collate_fn=collate):  # type: ignore[arg-type]
        with torch.no_grad():
            outputs = network(images)
        sizes = [tuple(target["orig_size"].tolist()) for target in targets]
        evaluator.process([int(target["image_id"]) for target in targets], detectors.postprocess(outputs, sizes))
    return evaluator


def test_figures_are_those_of_training(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--json", tmp_path / "a" / "figures.json", "--results", tmp_path / "results.json")
    report = main(
        "--model",
        model,
        "--data",
        data,
        "--device",
        "cpu",
        "--workers",
        0,
        "--batch-size",
        4,
        "--threshold",
        0.1,
        *files,
    )
    evaluator = evaluated(data)
    assert report["figures"] == pytest.approx(evaluator.evaluate(), abs=1e-6)
    assert report["images"] == 6
    assert json.loads((tmp_path / "a" / "figures.json").read_text()) == report
    assert [entry["category_id"] for entry in report["classes"]] == [3, 7, 11, 20, 42]
    for entry in report["classes"]:
        assert entry["AP"] == pytest.approx(evaluator.per_class()[entry["name"]], abs=1e-6)
        assert entry["objects"] == evaluator.object_counts()[entry["name"]]
    assert report["objects"]["all"] == sum(entry["objects"]["all"] for entry in report["classes"]) > 0
    matrix = torch.tensor(report["confusion"]["matrix"])
    assert report["confusion"]["classes"][-1] == "background"
    assert matrix.sum(1)[:-1].tolist() == [entry["objects"]["all"] for entry in report["classes"]]
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 6 * 100
    assert {result["category_id"] for result in results} <= {3, 7, 11, 20, 42}

    printed = capsys.readouterr().out
    assert f"6 images of {data}" in printed
    assert "chequered square" in printed
    assert "Most frequent mistakes (score ≥ 0.1, IoU ≥ 0.5)" in printed
    assert f"{report['figures']['AP']:.3f}" in printed
    assert " – " in printed  # no large objects


def test_a_run_and_another_split(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = tiny_detector()
    options = {"decoder_layers": 2, "num_queries": 20, "num_denoising": 0, "input_size": [64, 96]}
    state = {
        "model": "deim_n", "options": options, "recipe": options,
        "class_names": network.class_names, "category_ids": network.category_ids,
    }  # fmt: skip
    write_checkpoint(tmp_path / "run" / "checkpoints", "best_0003", {"ema": network.state_dict()}, state)
    report = main("--model", tmp_path / "run", "--data", data, "--split", "train", "--device", "cpu", "--workers", 0)
    assert report["images"] == 3
    assert report["model"] == str(tmp_path / "run" / "checkpoints" / "best_0003")
    assert f"weights: {report['model']}" in capsys.readouterr().out.replace("\n", "")
    assert report["figures"] == pytest.approx(evaluated(data, "train").evaluate(), abs=1e-6)


def test_classes_are_matched_by_name_whatever_their_order(data: Path, tmp_path: Path) -> None:
    network = tiny_detector(class_names=list(SHAPES)[::-1])
    network.category_ids = [1, 2, 3, 4, 5]  # of some other data set
    save_pretrained(network, tmp_path / "model")
    report = main("--model", tmp_path / "model", "--data", data, "--device", "cpu", "--workers", 0)
    names = [(entry["name"], entry["category_id"]) for entry in report["classes"]]
    assert names[0] == ("cross", 42)
    assert names[-1] == ("striped disc", 3)


def test_classes_without_names_are_matched_by_category_id(data: Path, tmp_path: Path) -> None:
    network = tiny_detector(num_classes=5)
    network.category_ids = [42, 20, 11, 7, 3]
    save_pretrained(network, tmp_path / "model")
    words = ("--data", data, "--device", "cpu", "--workers", 0)
    report = main("--model", tmp_path / "model", *words)
    assert [entry["name"] for entry in report["classes"]][:2] == ["cross", "ring"]
    for ids, message in (([1, 2, 3, 4, 5], r"the category ids \[1, 2, 3, 4, 5\]"), (None, "no category ids either")):
        network.category_ids = ids
        save_pretrained(network, tmp_path / "model")
        with pytest.raises(InputError, match=message):
            main("--model", tmp_path / "model", *words)


def test_other_classes_are_one_clear_line(data: Path, tmp_path: Path) -> None:
    save_pretrained(tiny_detector(class_names=["ring", "cat"]), tmp_path / "model")
    words = [sys.executable, EXAMPLE, "--model", tmp_path / "model", "--data", data, "--device", "cpu"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "expected but not in the file: cat" in done.stderr
    assert "in the file but not expected: striped disc" in done.stderr
    assert "Traceback" not in done.stderr


def test_everything_that_is_wrong_with_the_images_is_named_before_the_first(model: Path, tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "data", train_images=1, val_images=3, image_size=64)
    (data / "images" / "val_00000.png").unlink()
    (data / "images" / "val_00002.png").write_text("broken")
    with pytest.raises(InputError, match="2 problems in the data set") as caught:
        main("--model", model, "--data", data, "--device", "cpu")
    assert "val_00000.png does not exist" in str(caught.value)
    assert "val_00002.png" in str(caught.value)
