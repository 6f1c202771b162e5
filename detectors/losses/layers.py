"""A detector's training outputs, stacked over the layers that are compared with the same objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detectors.decoders.precision import at_least_float32
from detectors.losses.matcher import Matches

Output = Mapping[str, Any]


class Edges(NamedTuple):
    """The edge distributions of K decoder layers, the final one last."""

    corners: Tensor
    """Logits over the bins of the four edges, shape (K, N, Q, 4, reg_max + 1)."""
    reference_points: Tensor
    """The boxes that the edges are measured from, cxcywh, shape (K, N, Q, 4)."""
    teacher_corners: Tensor | None
    """What the layers before the final one learn from, shape (K − 1, N, Q, 4, reg_max + 1), or None."""
    teacher_confidence: Tensor | None
    """The teacher's highest class probability, shape (K − 1, N, Q)."""
    up: Tensor
    reg_scale: Tensor


class Layers(NamedTuple):
    """L layers with the same queries, half precision raised to float32: decoder layers first, in their order."""

    suffixes: list[str]
    """What the loss names of each layer end in."""
    logits: Tensor
    """Shape (L, N, Q, C)."""
    boxes: Tensor
    """Boxes cxcywh, shape (L, N, Q, 4)."""
    edges: Edges | None
    """Of the leading K layers; None for detectors without edge distributions."""


class Pairs(NamedTuple):
    """Matched pairs on the device; int64, each of shape (L, P), or (1, P) where all layers share them."""

    image: Tensor
    query: Tensor
    target: Tensor
    """Position of the object among the objects of all images, concatenated."""

    def at(self, layers: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what picks (layers, P, ...) from a tensor (layers, N, Q, ...) of the leading layers."""
        return torch.arange(layers, device=self.image.device)[:, None], self.image[:layers], self.query[:layers]


def matching_layers(outputs: Output, reg_max: int) -> Layers:
    """Stack everything that is matched with the objects: the decoder's layers, its pre-output, the encoder's."""
    decoder = {f"_aux_{i}": output for i, output in enumerate(outputs.get("aux_outputs", ()))} | {"": outputs}
    others = {"_pre": outputs["pre_outputs"]} if "pre_outputs" in outputs else {}
    others |= {f"_enc_{i}": output for i, output in enumerate(outputs.get("enc_aux_outputs", ()))}
    return _stack(decoder, others, outputs, reg_max)


def denoising_layers(outputs: Output, reg_max: int) -> Layers | None:
    """Stack the denoising queries of the decoder's layers and its pre-output; None if there are none."""
    if "dn_outputs" not in outputs:
        return None
    decoder = {f"_dn_{i}": output for i, output in enumerate(outputs["dn_outputs"])}
    others = {"_dn_pre": outputs["dn_pre_outputs"]} if "dn_pre_outputs" in outputs else {}
    return _stack(decoder, others, outputs, reg_max)


def matching_pairs(matches: Matches, device: torch.device) -> Pairs:
    """Bring matches to the device."""
    return Pairs(*to_device(np.stack(matches), device))


def denoising_pairs(meta: Output, counts: Sequence[int], device: torch.device) -> Pairs:
    """Pair every positive denoising query with the object that it was made from.

    Args:
        meta: as `detectors.decoders.denoising.contrastive_denoising` gives it.
        counts: number of objects of each image.
        device: where the pairs shall lie.

    Returns:
        Pairs of shape (1, groups × number of objects).
    """
    groups = meta["dn_num_group"]
    image = np.repeat(np.arange(len(counts)), np.multiply(counts, groups))
    first = np.cumsum([0, *counts[:-1]])
    target = np.concatenate([np.tile(np.arange(n, n + count), groups) for n, count in zip(first, counts, strict=True)])
    image_and_target = to_device(np.stack([image, target])[:, None], device)
    return Pairs(image_and_target[0], torch.cat(list(meta["dn_positive_idx"]))[None], image_and_target[1])


def to_device(array: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Bring numbers of the host to the device without waiting for it."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # only a copy from pinned memory is asynchronous
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _stack(decoder: Mapping[str, Output], others: Mapping[str, Output], outputs: Output, reg_max: int) -> Layers:
    layers = [*decoder.values(), *others.values()]
    return Layers(
        suffixes=[*decoder, *others],
        logits=_stack_key(layers, "pred_logits"),
        boxes=_stack_key(layers, "pred_boxes"),
        edges=_edges(list(decoder.values()), outputs, reg_max) if "pred_corners" in outputs else None,
    )


def _edges(decoder: Sequence[Output], outputs: Output, reg_max: int) -> Edges:
    # The final layer learns from no one, also where its entry holds a teacher: that teacher is itself.
    students = decoder[:-1]
    taught = bool(students) and "teacher_corners" in students[0]
    return Edges(
        corners=_stack_bins(decoder, "pred_corners", reg_max),
        reference_points=_stack_key(decoder, "ref_points"),
        teacher_corners=_stack_bins(students, "teacher_corners", reg_max) if taught else None,
        teacher_confidence=_stack_key(students, "teacher_logits").amax(-1).sigmoid() if taught else None,
        up=at_least_float32(outputs["up"]),
        reg_scale=at_least_float32(outputs["reg_scale"]),
    )


def _stack_key(layers: Sequence[Output], key: str) -> Tensor:
    return at_least_float32(torch.stack([layer[key] for layer in layers]))


def _stack_bins(layers: Sequence[Output], key: str, reg_max: int) -> Tensor:
    return torch.unflatten(_stack_key(layers, key), -1, (4, reg_max + 1))
