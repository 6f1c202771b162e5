from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from support.students import Wide
from support.tapped import tapped
from torch import nn

from vfmdistill import InputError, attach
from vfmdistill.adapters.ultralytics import UltralyticsAdapter

IMAGES = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(0))
needs_ultralytics = pytest.mark.skipif(importlib.util.find_spec("ultralytics") is None, reason="not installed")


class _Network(nn.Module):
    """A network as Ultralytics builds them: numbered layers, and a description of which are the backbone."""

    def __init__(self, strides: list[int], backbone: int) -> None:
        super().__init__()
        self.yaml = {"backbone": [[]] * backbone}
        self.stride = torch.tensor([float(stride) for stride in strides])
        layers = [nn.Conv2d(3, 4, 16, 16), nn.Conv2d(4, 5, 2, 2), nn.MaxPool2d(1), nn.Conv2d(5, 6, 2, 2)]
        self.model = nn.Sequential(*layers)
        self.model[-1].f = [0, 1, 2]  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("strides", "backbone", "layer"), [([16, 32], 2, 1), ([16, 32], 3, 1), ([16, 32, 64], 4, 1), ([64], 4, 3)]
)
def test_the_layer_by_the_description(strides: list[int], backbone: int, layer: int) -> None:
    student = _Network(strides, backbone)
    (tap,) = UltralyticsAdapter().taps(student)
    assert (tap.path, tap.module) == (f"model.{layer}", student.model[layer])


def test_networks_without_a_description_are_not_matched() -> None:
    student = _Network([16, 32], 2)
    del student.yaml
    assert not UltralyticsAdapter().matches(student)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("settings")))
    monkeypatch.setenv("YOLO_OFFLINE", "1")
    return pytest.importorskip("ultralytics.nn.tasks")


@needs_ultralytics
@pytest.mark.parametrize(
    ("kind", "name", "path", "shape"),
    [
        ("DetectionModel", "yolov8n", "model.9", (256, 4, 6)),
        ("DetectionModel", "yolo11n", "model.10", (256, 4, 6)),
        ("DetectionModel", "yolov8n-p6", "model.26", (192, 4, 6)),
        ("DetectionModel", "yolov3-tiny", "model.10", (512, 4, 6)),
        ("SegmentationModel", "yolov8n-seg", "model.9", (256, 4, 6)),
        ("ClassificationModel", "yolov8n-cls", "model.8", (256, 4, 6)),
        ("RTDETRDetectionModel", "rtdetr-l", "model.11", (256, 4, 6)),
    ],
)
def test_the_last_layer_of_the_backbone(tasks: Any, kind: str, name: str, path: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student = getattr(tasks, kind)(f"{name}.yaml", verbose=False)
    taken = tapped(student, IMAGES)
    assert (taken.adapter, taken.path) == ("UltralyticsAdapter", path)
    assert taken.feature_map.shape == (2, *shape)


@needs_ultralytics
def test_the_class_around_a_network_is_refused(tasks: Any) -> None:
    from ultralytics import YOLO

    with pytest.raises(InputError, match=r"student: a YOLO, which runs .* expected the network\. Attach to its attrib"):
        attach(YOLO("yolov8n.yaml"), Wide())
