from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.tiny_detector import tiny_detector

from detectors.opening import locate_detector, open_detector
from detectors.predictor import Predictor
from detectors.pretrained import save_pretrained
from detectors.training.checkpoint import write_checkpoint
from vfmdistill.errors import InputError


def checkpoint(folder: Path, name: str) -> Path:
    model = tiny_detector()
    options = {"decoder_layers": 2, "num_queries": 20, "num_denoising": 0, "input_size": [64, 96]}
    state = {
        "model": "deim_n",
        "options": options,
        "class_names": model.class_names,
        "category_ids": model.category_ids,
        "recipe": options,
    }
    return write_checkpoint(folder, name, {"ema": model.state_dict()}, state)


def test_a_detector_is_returned_as_it_is() -> None:
    model = tiny_detector().train()
    assert open_detector(model) is model
    assert model.training


def test_opens_a_pretrained_folder(tmp_path: Path) -> None:
    save_pretrained(tiny_detector(), tmp_path / "model")
    assert locate_detector(tmp_path / "model") == tmp_path / "model"
    model = open_detector(str(tmp_path / "model"))
    assert not model.training
    assert model.spec.input_size == (64, 96)
    picture = torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(0))
    expected = Predictor(tiny_detector(), threshold=0.0)(picture)
    assert torch.equal(Predictor(tmp_path / "model", threshold=0.0, device="cpu")(picture).boxes, expected.boxes)


def test_opens_a_checkpoint_and_the_best_one_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("epoch_0007", "epoch_0006", "best_0004"):
        checkpoint(run / "checkpoints", name)
    assert locate_detector(run) == locate_detector(run / "checkpoints") == run / "checkpoints" / "best_0004"
    assert locate_detector(run / "checkpoints" / "epoch_0006").name == "epoch_0006"
    weights = tiny_detector().state_dict()
    for source in (run, run / "checkpoints" / "epoch_0006"):
        model = open_detector(source)
        assert model.category_ids == [3, 7, 11, 20, 42]
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_run_whose_checkpoints_were_removed_opens_what_it_left_to_ship(tmp_path: Path) -> None:
    save_pretrained(tiny_detector(), tmp_path / "run" / "pretrained")
    assert locate_detector(tmp_path / "run") == tmp_path / "run" / "pretrained"


def test_anything_else_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got a DataParallel: expected .* without what wraps it"):
        Predictor(torch.nn.DataParallel(tiny_detector()))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is no folder nowhere; expected a folder written by"):
        open_detector("nowhere")
    with pytest.raises(InputError, match="holds no detector; expected"):
        open_detector(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights\.pth is a file, which does not say what model it belongs to"):
        open_detector(tmp_path / "weights.pth")
    checkpoint(tmp_path / "run" / "checkpoints", "epoch_0000")
    with pytest.raises(InputError, match=r"not evaluated yet; name one of .*epoch_0000"):
        open_detector(tmp_path / "run")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "d_fine"}))
    with pytest.raises(Exception, match=r"config\.json"):
        open_detector(tmp_path)
