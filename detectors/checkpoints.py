"""Trained weights under our names: those of the authors, of transformers, and of our own folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors.checkpoint_sources import OUR_SCORES, Checkpoint, open_checkpoint
from detectors.class_surgery import EMBEDDING, ClassMatch, match_classes, move_rows
from detectors.detector import Detector
from vfmdistill.errors import WeightsError

# Ours that a checkpoint may lack: batch norms that were frozen in training count no steps.
OPTIONAL = re.compile(r"\.num_batches_tracked$")


@dataclass(frozen=True)
class LoadReport:
    """What `load_reference_checkpoint` did with every tensor and every class."""

    loaded: tuple[str, ...]
    """Our names of the tensors that were filled."""
    ignored: dict[str, str]
    """The checkpoint's names of tensors that were left aside → why."""
    kept: tuple[str, ...]
    """Our names of what the checkpoint may lack, step counters of norms and the embedding of denoising queries; they
    stay as they are."""
    classes: ClassMatch
    """Which classes' rows come from the checkpoint, which are new, and which were dropped."""

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors filled", f"classes: {self.classes}"]
        reasons = sorted(set(self.ignored.values()))
        lines += [
            f"{sum(reason == other for other in self.ignored.values())} tensors left aside: {reason}"
            for reason in reasons
        ]
        if self.kept:
            counters = [key for key in self.kept if key != EMBEDDING]
            if counters:
                lines.append(f"{len(counters)} step counters of batch norms kept: the checkpoint has none")
            if EMBEDDING in self.kept:
                lines.append("the embedding of denoising queries is new: the checkpoint was trained without them")
        return "\n".join(lines)


@torch.no_grad()
def load_reference_checkpoint(
    model: Detector, source: str | Path | Mapping[str, Any], *, source_class_names: Sequence[str] | None = None
) -> LoadReport:
    """Fill a detector with trained weights of the same architecture; nothing is changed unless everything fits.

    Where the classes differ, the rows of a class are kept for the class of the same name, in the score heads of the
    query selection and of every layer and in the denoising embedding; new classes keep their initial values. The
    report names them. Names are compared as `match_classes` says: transformers' checkpoints of COCO call some classes
    by other names ("sofa"); `source_class_names=COCO_NAMES` makes them COCO's.

    A detector without class names takes over the checkpoint's, if they are distinct; one without category ids those of
    a checkpoint with the same classes.
    `model.license` becomes the licence that a folder of ours states, else None: other checkpoints do not carry one.

    Args:
        model: the detector, built like the one that was trained, with any classes.
        source: a file as the authors of RT-DETR, RT-DETRv2, D-FINE, DEIM and RT-DETRv4 publish it (their averaged
            weights are taken where it has them), or its contents; a state dict with their names or ours; a folder of
            transformers' RTDetr-, RTDetrV2- or DFineForObjectDetection, with safetensors; or a folder that
            `save_pretrained` wrote.
        source_class_names: names of the checkpoint's classes in the order of its logits. None: what a folder says; 80
            classes of others, of which nothing is said, are COCO's in the order of their category ids.

    Raises:
        WeightsError: the source cannot be read or belongs to a detector that is built otherwise; a tensor is missing,
            left over or of another shape; or the numbers of classes differ and it is not known which are the same.
    """
    checkpoint = open_checkpoint(source, model)
    ours = model.state_dict()
    names = {key: checkpoint.names(key) for key in ours}
    ignored = _check_names(model, checkpoint, names)
    given = {key: tensor for key in ours if (tensor := checkpoint.get(key)) is not None}
    class_names = checkpoint.class_names if source_class_names is None else tuple(source_class_names)
    match = match_classes(model.num_classes, model.class_names, given[OUR_SCORES].numel(), class_names)
    filled = {key: move_rows(key, tensor, ours[key], match) for key, tensor in given.items()}
    _check_shapes(model, filled, ours, names)
    for key, value in filled.items():
        ours[key].copy_(value)
    if model.class_names is None and class_names is not None and len(set(class_names)) == len(class_names):
        model.class_names = list(class_names)
    renamed = source_class_names is not None and class_names != checkpoint.class_names
    if model.category_ids is None and checkpoint.category_ids is not None and match.in_order and not renamed:
        model.category_ids = list(checkpoint.category_ids)
    model.license = checkpoint.license
    return LoadReport(tuple(filled), ignored, tuple(key for key in ours if key not in filled), match)


def _check_names(model: Detector, checkpoint: Checkpoint, names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return what the checkpoint holds beside our tensors → why it is not needed."""
    given = checkpoint.tensors.keys()
    missing = [
        name
        for key, parts in names.items()
        for name in parts
        if name not in given and not OPTIONAL.search(key) and key != EMBEDDING
    ]
    rules = checkpoint.ignored
    if EMBEDDING not in names:
        rules += tuple(
            (f"^{re.escape(name)}$", "this detector was built without denoising queries")
            for name in checkpoint.names(EMBEDDING)
        )
    ignored, left_over = {}, []
    for name in sorted(given - {name for parts in names.values() for name in parts}):
        reasons = [reason for pattern, reason in rules if re.search(pattern, name)]
        if reasons:
            ignored[name] = reasons[0]
        else:
            left_over.append(name)
    if missing or left_over:
        raise WeightsError(
            f"the checkpoint does not belong to {model.spec.name!r}: {len(missing)} tensors are missing "
            f"(first, in its names: {missing[:5]}), {len(left_over)} are left over (first: {left_over[:5]}). "
            + ("Load it before detectors.deploy." if model.deployed else "Build the detector that it was trained as.")
        )
    return ignored


def _check_shapes(
    model: Detector,
    filled: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    names: Mapping[str, tuple[str, ...]],
) -> None:
    wrong = [
        f"{' + '.join(names[key])} {tuple(value.shape)} instead of {tuple(ours[key].shape)}"
        for key, value in filled.items()
        if value.shape != ours[key].shape
    ]
    if wrong:
        raise WeightsError(f"{len(wrong)} tensors do not fit {model.spec.name!r}: {'; '.join(wrong[:5])}.")
