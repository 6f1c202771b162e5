"""Contrastive denoising: training queries made from the objects themselves (DINO, arXiv 2203.03605, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from detectors.decoders.precision import at_least_float32
from detectors.decoders.prediction import Targets


class DenoisingQueries(NamedTuple):
    """D denoising queries for each image, to stand before its Q matching queries."""

    content: Tensor
    """Class embeddings, shape (N, D, C)."""
    boxes_unactivated: Tensor
    """Logits of noisy boxes cxcywh, shape (N, D, 4)."""
    attention_mask: Tensor
    """True where a query (row) must not see another (column), shape (D + Q, D + Q)."""
    meta: dict[str, Any]
    """`dn_positive_idx`: for each image the positions of its positive queries, (groups · M,); `dn_num_group`: number of
    groups; `dn_num_split`: [D, Q]."""


def contrastive_denoising(
    targets: Targets,
    num_classes: int,
    num_queries: int,
    class_embed: Callable[[Tensor], Tensor],
    num_denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    flip: bool = True,
) -> DenoisingQueries | None:
    """Make groups of noisy copies of the objects of each image, which the decoder learns to restore or to reject.

    A group holds a positive and a negative copy of each object, padded to the largest number of objects M in the batch:
    D = groups · 2 · M. Positives move each edge by less than half the box's width or height times `box_noise`,
    negatives by one to two halves. Groups do not see each other, and matching queries see no group.

    Random numbers come from torch's global generator on the device of the targets.

    Args:
        targets: for each image `labels` (M,), int64, and `boxes` (M, 4), cxcywh in [0, 1]; M may be 0.
        num_classes: number of classes; also the label of padding.
        num_queries: number of matching queries Q.
        class_embed: maps labels (N, D) in [0, num_classes] to embeddings (N, D, C).
        num_denoising: how many positive queries an image shall have: groups = num_denoising // M, at least one.
        label_noise: twice the probability that a label is drawn anew.
        box_noise: see above; 0 leaves the boxes as they are.
        flip: edges that passed each other are swapped; False: such a box gets the smallest width or height, as in
            RT-DETR's first version.

    Returns:
        The queries; None if no image has an object or `num_denoising` is 0.
    """
    counts = [len(target["labels"]) for target in targets]
    largest = max(counts, default=0)
    if largest == 0 or num_denoising <= 0:
        return None
    groups = max(num_denoising // largest, 1)
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True, padding_value=num_classes)
    boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True)
    labels = labels.tile(1, 2 * groups)
    boxes = at_least_float32(boxes).tile(1, 2 * groups, 1)

    if label_noise > 0:
        drawn_anew = torch.rand_like(labels, dtype=torch.float32) < 0.5 * label_noise
        new_labels = torch.randint_like(labels, num_classes)
        labels = torch.where(drawn_anew & (labels != num_classes), new_labels, labels)
    if box_noise > 0:
        boxes = _shift_edges(boxes, largest, box_noise, flip)

    # (groups, M): where in the sequence the positive copy of each object stands
    slots = torch.arange(groups * 2 * largest, device=boxes.device).view(groups, 2, largest)[:, 0]
    return DenoisingQueries(
        content=class_embed(labels),
        boxes_unactivated=boxes.logit(eps=1e-5),
        attention_mask=_attention_mask(groups, 2 * largest, num_queries, boxes.device),
        meta={
            "dn_positive_idx": tuple(slots[:, :count].flatten() for count in counts),
            "dn_num_group": groups,
            "dn_num_split": [labels.shape[1], num_queries],
        },
    )


class DenoisingEmbedding(nn.Embedding):
    """Embedding of the classes, and of padding behind them, from which a decoder makes its denoising queries.

    Args:
        num_classes: number of classes.
        dim: width of the queries.
        settings: of `contrastive_denoising`: `num_denoising`, `label_noise`, `box_noise`, `flip`.
    """

    def __init__(self, num_classes: int, dim: int, **settings: Any) -> None:
        super().__init__(num_classes + 1, dim, padding_idx=num_classes)
        self.settings = settings

    def queries(self, targets: Targets, num_queries: int) -> DenoisingQueries | None:
        """Return what `contrastive_denoising` makes of the objects, to stand before `num_queries` queries."""
        return contrastive_denoising(targets, self.num_embeddings - 1, num_queries, self, **self.settings)


def prepend(
    noisy: DenoisingQueries | None, content: Tensor, box_logits: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Put denoising queries before the matching queries.

    Args:
        noisy: D denoising queries for each image, or None.
        content: of the Q matching queries, shape (N, Q, C).
        box_logits: their boxes as logits, shape (N, Q, 4).

    Returns:
        Content (N, D + Q, C), box logits (N, D + Q, 4) and attention mask; as they were and None without denoising.
    """
    if noisy is None:
        return content, box_logits, None
    return (
        torch.cat([noisy.content.to(content.dtype), content], dim=1),
        torch.cat([noisy.boxes_unactivated.to(box_logits.dtype), box_logits], dim=1),
        noisy.attention_mask,
    )


def _shift_edges(boxes: Tensor, largest: int, box_noise: float, flip: bool) -> Tensor:
    sign = torch.randint_like(boxes, 2) * 2 - 1
    shift = torch.rand_like(boxes)
    # Of each group's 2 · M queries the second half is negative.
    negative = torch.arange(boxes.shape[1], device=boxes.device) // largest % 2
    shift = shift + negative[:, None]
    reach = 0.5 * box_noise * boxes[..., 2:].tile(1, 1, 2)
    edges: Tensor = box_convert(boxes, "cxcywh", "xyxy") + sign * shift * reach
    shifted: Tensor = box_convert(edges.clamp(0, 1), "xyxy", "cxcywh")
    # Edges that passed each other leave a negative size, which the logit would draw up to its smallest.
    return shifted.abs() if flip else shifted


def _attention_mask(groups: int, group_size: int, num_queries: int, device: torch.device) -> Tensor:
    positions = torch.arange(groups * group_size + num_queries, device=device)
    group = (positions // group_size).clamp(max=groups)  # the matching queries come last, as one more group
    return (group[:, None] != group) & (group != groups)
