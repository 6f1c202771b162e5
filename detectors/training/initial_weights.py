"""Weights of a trained detector as the start of a run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from detectors.checkpoints import LoadReport, load_reference_checkpoint
from detectors.detector import Detector
from detectors.opening import locate_detector
from detectors.pretrained import save_pretrained

from .checkpoint import STATE
from .snapshot import load_checkpoint


def load_initial_weights(model: Detector, source: Path) -> LoadReport:
    """Fill a detector with trained weights; what a class has learnt is kept where a class of that name is wanted.

    Args:
        model: the detector that will be trained; it must have class names.
        source: anything that `detectors.load_reference_checkpoint` reads; or a checkpoint of a run, of which the
            averaged weights are taken; or the output folder of a run, which stands for its best checkpoint.

    Raises:
        InputError: an incomplete checkpoint of a run.
        WeightsError: the weights cannot be read, or do not fit the detector.
    """
    if source.is_dir():
        source = locate_detector(source)
    if not (source / STATE).is_file():
        return load_reference_checkpoint(model, source)
    with TemporaryDirectory() as folder:  # a folder says how its detector was built, which is compared
        save_pretrained(load_checkpoint(source), folder)
        return load_reference_checkpoint(model, folder)
