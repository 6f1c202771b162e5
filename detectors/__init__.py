"""RT-DETR, RT-DETRv2, D-FINE, DEIM and RT-DETRv4: reference detectors for vfmdistill.

>>> import detectors
>>> model = detectors.build("rtdetrv4_s", num_classes=80)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# A function that is called like its module has to be bound before anyone imports the module.
from detectors.deploy import deploy
from detectors.postprocess import postprocess

if TYPE_CHECKING:
    from detectors.catalog import DetectorSpec, detector_spec, list_models
    from detectors.checkpoints import LoadReport, load_reference_checkpoint
    from detectors.detections import Detections
    from detectors.detector import Detector
    from detectors.export import ExportReport, export_onnx
    from detectors.factory import build, build_criterion
    from detectors.losses.finite import NonFiniteError
    from detectors.onnx_graph import ExportError
    from detectors.opening import open_detector
    from detectors.predictor import Predictor
    from detectors.pretrained import from_pretrained, save_pretrained

# Everything else is imported when it is first asked for.
_HOMES = {
    "build": "factory",
    "build_criterion": "factory",
    "list_models": "catalog",
    "detector_spec": "catalog",
    "DetectorSpec": "catalog",
    "Detector": "detector",
    "load_reference_checkpoint": "checkpoints",
    "LoadReport": "checkpoints",
    "save_pretrained": "pretrained",
    "from_pretrained": "pretrained",
    "open_detector": "opening",
    "export_onnx": "export",
    "ExportReport": "export",
    "ExportError": "onnx_graph",
    "NonFiniteError": "losses.finite",
    "Predictor": "predictor",
    "Detections": "detections",
}

__all__ = [
    "build",
    "build_criterion",
    "list_models",
    "detector_spec",
    "postprocess",
    "load_reference_checkpoint",
    "save_pretrained",
    "from_pretrained",
    "open_detector",
    "deploy",
    "export_onnx",
    "Predictor",
    "Detector",
    "DetectorSpec",
    "Detections",
    "LoadReport",
    "ExportReport",
    "ExportError",
    "NonFiniteError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
