from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import detectors
from vfmdistill.errors import InputError, UnknownNameError


def build_on_meta(*args: Any, **options: Any) -> detectors.Detector:
    with torch.device("meta"):
        return detectors.build(*args, **options)


def test_classes_by_number_or_by_name() -> None:
    model = build_on_meta("rtdetrv4_n", num_classes=3)
    assert (model.num_classes, model.class_names) == (3, None)
    model = build_on_meta("rtdetrv4_n", class_names=("cat", "dog"))
    assert (model.num_classes, model.class_names) == (2, ["cat", "dog"])
    assert build_on_meta("rtdetrv4_n", num_classes=2, class_names=["cat", "dog"]).num_classes == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"number of classes is missing.*num_classes=80"),
        ({"num_classes": 3, "class_names": ["cat", "dog"]}, "num_classes is 3, but class_names holds 2 names"),
        ({"class_names": ["cat", "cat"]}, "same name twice"),
        ({"num_classes": 0}, "at least one class"),
        ({"class_names": []}, "at least one class"),
        ({"class_names": "cat"}, "class_names must be a list of names, got 'cat'"),
        ({"class_names": [1, 2]}, "class_names must be a list of names"),
        ({"num_classes": 3.0}, "num_classes must be a whole number, got 3.0"),
    ],
)
def test_classes_have_to_be_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        detectors.build("rtdetrv4_n", **options)


def test_overrides_reach_the_parts_and_the_spec() -> None:
    model = build_on_meta("rtdetrv4_n", 3, num_queries=20, num_denoising=0, decoder_layers=2, encoder_depth=1.0)
    assert (model.decoder.num_queries, len(model.decoder.stages)) == (20, 2)
    assert model.decoder.denoising_embedding is None
    assert len(model.encoder.top_down[0].first[0].blocks) == 3
    assert model.spec.num_queries == 20
    assert model.spec.name == "rtdetrv4_n"


def test_bad_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'rtdetr4_s'; nearest: rtdetrv4_s"):
        detectors.build("rtdetr4_s", num_classes=3)
    with pytest.raises(UnknownNameError, match="unknown model option 'queries'; nearest: num_queries"):
        detectors.build("rtdetrv4_s", num_classes=3, queries=100)
    with pytest.raises(UnknownNameError, match="unknown model option 'gama'; nearest: gamma"):
        detectors.build_criterion("rtdetrv4_s", num_classes=3, gama=1)


@pytest.mark.parametrize(
    ("name", "classification"),
    [("rtdetrv4_s", "mal"), ("deim_x", "mal"), ("dfine_m", "vfl"), ("rtdetr_r18", "vfl"), ("deim_rtdetrv2_r50", "mal")],
)
def test_criterion_of_each_family(name: str, classification: str) -> None:
    """Weights of the authors' configurations."""
    criterion = detectors.build_criterion(name, num_classes=7)
    assert criterion.classification == classification
    assert criterion.weights == {classification: 1.0, "bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}
    assert (criterion.num_classes, criterion.reg_max) == (7, 32)
    assert criterion.union_matching == ("rtdetr" not in name or name.startswith("rtdetrv4"))


def test_criterion_of_a_spec_with_overrides() -> None:
    spec = detectors.detector_spec("rtdetrv4_s").replace(weight_giou=4.0)
    criterion = detectors.build_criterion(spec, 7, weight_bbox=1.0)
    assert (criterion.weights["giou"], criterion.weights["bbox"]) == (4.0, 1.0)


def test_public_names() -> None:
    """A name that disappears breaks someone's program."""
    assert detectors.__all__ == [
        "build", "build_criterion", "list_models", "detector_spec", "postprocess", "load_reference_checkpoint",
        "save_pretrained", "from_pretrained", "open_detector", "deploy", "export_onnx", "Predictor",
        "Detector", "DetectorSpec", "Detections", "LoadReport", "ExportReport",
        "ExportError", "NonFiniteError",
    ]  # fmt: skip
    assert all(callable(getattr(detectors, name)) for name in detectors.__all__)
    assert set(detectors.__all__) <= set(dir(detectors))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        detectors.nothing  # noqa: B018


def test_import_is_light_and_functions_named_like_their_file_stay_functions() -> None:
    program = (
        "import sys, detectors\n"
        "heavy = {'timm', 'torchvision', 'scipy', 'open_clip', 'pycocotools', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from detectors.postprocess import postprocess\n"
        "from detectors.deploy import deploy\n"
        "assert detectors.postprocess is postprocess and detectors.deploy is deploy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
