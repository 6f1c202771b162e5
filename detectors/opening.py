"""A detector from whatever names one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from detectors.detector_config import CONFIG
from vfmdistill.errors import InputError

if TYPE_CHECKING:
    from detectors.detector import Detector

_ACCEPTED = (
    "expected a folder written by detectors.save_pretrained, a checkpoint of a run (checkpoints/best_0012), or the "
    "output folder of a run"
)


def open_detector(source: Detector | str | os.PathLike[str]) -> Detector:
    """Return the detector that `source` is or names, from a folder in eval mode and on the CPU.

    Args:
        source: a detector, which is returned as it is; or a folder, see `locate_detector`.

    Raises:
        InputError: there is no such folder, it holds no detector, or `source` is something else.
        WeightsError: its weights are missing, damaged or do not fit.
    """
    from detectors.detector import Detector

    if isinstance(source, Detector):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"got a {type(source).__name__}: {_ACCEPTED}, or a detector itself, without what wraps it (model.module, "
            "model._orig_mod)."
        )
    folder = locate_detector(source)
    if (folder / CONFIG).is_file():
        from detectors.pretrained import from_pretrained

        return from_pretrained(folder)
    from detectors.training import load_checkpoint

    return load_checkpoint(folder)


def locate_detector(source: str | os.PathLike[str]) -> Path:
    """Return the folder with the weights that a folder stands for.

    Args:
        source: a folder that `detectors.save_pretrained` wrote or a checkpoint of a training run, which stand for
            themselves; or the output folder of a run, which stands for its best checkpoint, or where the checkpoints
            were removed, for its folder `pretrained`.

    Raises:
        InputError: there is no such folder, or it is none of these.
    """
    folder = Path(source).expanduser()
    if folder.is_file():
        raise InputError(
            f"{folder} is a file, which does not say what model it belongs to: {_ACCEPTED}. Weights of the authors are "
            "brought into one by detectors.load_reference_checkpoint and save_pretrained."
        )
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; {_ACCEPTED}.")
    if (folder / CONFIG).is_file() or _is_checkpoint(folder):
        return folder
    checkpoints = folder if folder.name == "checkpoints" else folder / "checkpoints"
    best, others = (
        sorted(path for path in checkpoints.glob(pattern) if _is_checkpoint(path)) for pattern in ("best_*", "epoch_*")
    )
    if best:
        return best[-1]
    if others:
        raise InputError(
            f"the run {folder} has no best checkpoint, because it was not evaluated yet; name one of "
            f"{', '.join(map(str, others))}."
        )
    if (folder / "pretrained" / CONFIG).is_file():
        return folder / "pretrained"
    raise InputError(f"{folder} holds no detector; {_ACCEPTED}.")


def _is_checkpoint(folder: Path) -> bool:
    from detectors.training.checkpoint import STATE

    return (folder / STATE).is_file()
