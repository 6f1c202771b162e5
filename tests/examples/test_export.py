from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_detector import tiny_detector

import detectors
from detectors.key_maps import reference_key
from detectors.pretrained import save_pretrained
from vfmdistill.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "examples" / "export.py"


def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def test_a_saved_detector_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra [export]")
    save_pretrained(tiny_detector(decoder_layers=1), tmp_path / "detector", license="MIT")
    words = ["--model", tmp_path / "detector", "--output", tmp_path / "a.onnx", "--input-size", "64,64"]
    report = example()["main"]([*map(str, words), "--no-postprocess", "--no-dynamic-batch"])
    assert (report.input_size, report.inputs, report.dynamic_batch) == ((64, 64), ("images",), False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "deim_n, licence of the weights: MIT" in shown
    assert "images: 1 images of 64 × 64" in shown
    assert "checked 100.0% of the answers on 2 pictures are PyTorch's" in shown
    assert (tmp_path / "a.onnx").is_file()


def test_the_authors_checkpoint_needs_the_name_of_its_model(tmp_path: Path) -> None:
    options = example()["Options"]
    model = detectors.build("deim_n", num_classes=3)
    weights = {reference_key(key): value for key, value in model.state_dict().items()}
    torch.save({"ema": {"module": weights}}, tmp_path / "authors.pth")
    opened = options(model="deim_n", checkpoint=tmp_path / "authors.pth", num_classes=3).open()
    torch.testing.assert_close(opened.state_dict(), model.state_dict(), rtol=0, atol=0)
    with pytest.raises(InputError, match="is a model without weights: name those, too, by --checkpoint"):
        options(model="deim_n").open()
    with pytest.raises(InputError, match="there is no folder"):
        options(model="missing").open()


def test_unknown_values_name_their_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--precision: .*'fp32' or 'fp16'"):
        example()["main"](["--model", str(tmp_path), "--precision", "int8"])
