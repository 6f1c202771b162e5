"""From queries to detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detectors.decoders.precision import at_least_float32
from detectors.decoders.query_selection import take_rows
from vfmdistill.errors import InputError


@torch.no_grad()
def postprocess(
    outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]] | Tensor, top_k: int = 300
) -> list[dict[str, Tensor]]:
    """Turn a detector's outputs into scored boxes in pixels, best first.

    Every pair of query and class competes, so one query may be named twice. There is no non-maximum suppression, and
    boxes are not clipped to the image: they reach as far as the detector says.

    Args:
        outputs: `pred_logits` (N, Q, C) and `pred_boxes` (N, Q, 4), cxcywh in [0, 1].
        sizes: (height, width) of each image as it was before resizing, in pixels; or a tensor (N, 2) of them.
        top_k: detections per image; there are never more than Q · C.

    Returns:
        For each image `scores` (K,) in [0, 1], `labels` (K,), int64, and `boxes` (K, 4), xyxy in pixels. Scores and
        boxes are float32 (float64 for float64 outputs).

    Raises:
        InputError: there are not as many sizes as images, or `top_k` is not positive.
    """
    logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
    sizes = torch.as_tensor([list(map(int, _pair(size))) for size in sizes], device=boxes.device)
    if len(sizes) != len(logits):
        raise InputError(f"got {len(sizes)} sizes for {len(logits)} images; give (height, width) of each image.")
    if top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}.")
    ranked = rank(logits, boxes, sizes.reshape(-1, 2), top_k)
    return [{"scores": score, "labels": label, "boxes": box} for score, label, box in zip(*ranked, strict=True)]


def _pair(size: object) -> Sequence[int]:
    if isinstance(size, (Sequence, Tensor)) and not isinstance(size, str) and len(size) == 2:
        return size  # type: ignore[return-value]  # of a tensor's numbers too, each is an integer
    raise InputError(f"a size is (height, width) of an image in pixels, one for each image; got {size!r}.")


def rank(logits: Tensor, boxes: Tensor, sizes: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (N, K), labels (N, K) and boxes (N, K, 4) in pixels: `postprocess` on tensors alone.

    Args:
        logits: shape (N, Q, C).
        boxes: cxcywh in [0, 1], shape (N, Q, 4).
        sizes: height and width of each image, shape (N, 2).
        top_k: detections per image at most.
    """
    from torchvision.ops import box_convert

    logits, boxes = at_least_float32(logits), at_least_float32(boxes)
    num_queries, num_classes = logits.shape[1:]
    scores, chosen = logits.flatten(1).topk(min(top_k, num_queries * num_classes), dim=1)
    queries, labels = chosen // num_classes, chosen % num_classes
    boxes = take_rows(box_convert(boxes, "cxcywh", "xyxy"), queries)
    width_height = sizes.flip(1).to(boxes.dtype)
    return scores.sigmoid(), labels, boxes * width_height.tile(1, 2)[:, None]
