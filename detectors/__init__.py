"""RT-DETRv4, DEIM and D-FINE: reference detectors for vfmdistill.

>>> import detectors
>>> model = detectors.build("rtdetrv4_s", num_classes=80)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# A function that is called like its module has to be bound before anyone imports the module.
from detectors.postprocess import postprocess

if TYPE_CHECKING:
    from detectors.catalog import DetectorSpec, detector_spec, list_models
    from detectors.checkpoints import load_reference_checkpoint
    from detectors.detector import Detector
    from detectors.factory import build, build_criterion

# Everything else is imported when it is first asked for.
_HOMES = {
    "build": "factory",
    "build_criterion": "factory",
    "list_models": "catalog",
    "detector_spec": "catalog",
    "DetectorSpec": "catalog",
    "Detector": "detector",
    "load_reference_checkpoint": "checkpoints",
}

__all__ = [
    "build",
    "build_criterion",
    "list_models",
    "detector_spec",
    "postprocess",
    "load_reference_checkpoint",
    "Detector",
    "DetectorSpec",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
