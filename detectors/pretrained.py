"""save_pretrained and from_pretrained: a detector as a folder with safetensors and config.json."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from detectors.detector import Detector
from detectors.detector_config import CONFIG, DetectorConfig, read_config
from detectors.flush import flush
from vfmdistill.errors import InputError, WeightsError
from vfmdistill.weight_files import read_weights_file

WEIGHTS = "model.safetensors"
# What a save writes first. config.json carries the digest of its weights and is replaced in one step, so that at every
# moment it belongs to one of the two weight files.
NEXT_WEIGHTS, NEXT_CONFIG = "next.safetensors", "next.json"


def save_pretrained(model: Detector, directory: str | Path, *, license: str | None = None) -> None:
    """Write a detector into a folder: its weights as model.safetensors, and everything else as config.json.

    Whatever interrupts it, the folder then holds the old detector or the new one. Other files in it are left alone.

    Args:
        model: the detector, deployed or not, on any device.
        directory: made if need be; a detector that is already there is replaced.
        license: licence of the weights, an SPDX identifier where there is one. None: what `model.license` says.

    Raises:
        InputError: `model` is not a detector, `directory` is a file, or the class names or category ids do not fit the
            detector.
        OSError: for example no space left.
    """
    from safetensors.torch import save_file

    if not isinstance(model, Detector):
        raise InputError(
            f"save_pretrained takes a detector, got {type(model).__name__}; unwrap it (model.module, model._orig_mod) "
            "before."
        )
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; give a folder to save the detector in.")
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / CONFIG).exists() and (directory / NEXT_WEIGHTS).exists():
        _settle(directory)
    weights, config = directory / NEXT_WEIGHTS, directory / NEXT_CONFIG
    try:
        save_file(
            {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()},
            weights,
            metadata={"format": "pt"},
        )
        described = DetectorConfig.of(
            model, license=model.license if license is None else license, sha256=_digest(weights)
        )
        config.write_text(described.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for path in (weights, config):
            flush(path)
        config.replace(directory / CONFIG)
    except BaseException as error:
        weights.unlink(missing_ok=True)
        config.unlink(missing_ok=True)
        if isinstance(error, ValidationError):
            reasons = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()
            )
            raise InputError(f"the detector cannot be saved: {reasons}.") from None
        raise
    weights.replace(directory / WEIGHTS)
    flush(directory)


def from_pretrained(directory: str | Path) -> Detector:
    """Return the detector that `save_pretrained` wrote, in eval mode, on the CPU, in the dtype it was saved in.

    Raises:
        WeightsError: the folder or one of its files is missing, damaged, of another format or version, names a model or
            an option that is unknown here, or the weights do not fit the model.
    """
    from detectors.factory import build  # which needs what reads weights

    directory = Path(directory).expanduser()
    config, tensors = read_pretrained(directory)
    with torch.random.fork_rng(devices=[]):
        model = build(config.model, config.num_classes, config.class_names, **config.options)
    if config.deployed:
        from detectors.deploy import deploy

        model = deploy(model)
    model.category_ids, model.license = config.category_ids, config.license
    _check(model, tensors, directory)
    dtypes = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    model.load_state_dict(tensors)
    return model.eval()


def read_pretrained(directory: Path) -> tuple[DetectorConfig, dict[str, Tensor]]:
    """Return the config and the weights, under our names, of a folder that `save_pretrained` wrote.

    Raises:
        WeightsError: the folder or one of its files is missing, damaged, of another format or version, or names a model
            or an option that is unknown here.
    """
    if not directory.is_dir():
        raise WeightsError(f"there is no folder {directory}; give one that detectors.save_pretrained wrote.")
    config = read_config(directory)
    tensors: dict[str, Tensor] = read_weights_file(_weights_of(directory, config))
    return config, tensors


def _weights_of(directory: Path, config: DetectorConfig) -> Path:
    """Return the weights file that a config belongs to: a save may have been interrupted before it renamed it."""
    weights, following = directory / WEIGHTS, directory / NEXT_WEIGHTS
    if config.sha256 is None or not (weights.is_file() or following.is_file()):
        return weights  # of which reading tells whether it is there
    for path in (weights, following):
        if path.is_file() and _digest(path) == config.sha256:
            return path
    raise WeightsError(
        f"{weights} is damaged or was replaced: its SHA-256 is not the one in {CONFIG}. Copy the folder again; if the "
        f'file was replaced on purpose, remove "sha256" from {CONFIG}.'
    )


def _settle(directory: Path) -> None:
    """Finish a save that was interrupted behind the replacement of config.json, before its weights are overwritten."""
    try:
        weights = _weights_of(directory, read_config(directory))
    except WeightsError:
        return  # nothing readable is there that could be lost
    if weights.name == NEXT_WEIGHTS:
        weights.replace(directory / WEIGHTS)


def _check(model: Detector, tensors: dict[str, Tensor], directory: Path) -> None:
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    left_over = sorted(tensors.keys() - wanted.keys())
    misshapen = [
        f"{key} {tuple(value.shape)} instead of {tuple(wanted[key].shape)}"
        for key, value in tensors.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    if missing or left_over or misshapen:
        raise WeightsError(
            f"the weights in {directory} do not fit the {model.spec.name!r} that its {CONFIG} describes: "
            f"{len(missing)} tensors are missing (first: {missing[:3]}), {len(left_over)} left over (first: "
            f"{left_over[:3]}), "
            f"{len(misshapen)} have another shape (first: {misshapen[:3]})."
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
