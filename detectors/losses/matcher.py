"""One-to-one matching of queries with objects (DETR, arXiv 2005.12872, section 3.1), for all decoder layers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detectors.losses.boxes import iou_and_giou
from detectors.losses.finite import NonFiniteError
from vfmdistill.errors import InputError


class Matches(NamedTuple):
    """Matched pairs on the host; int64, each of shape (L, P), or (1, P) where all layers share them."""

    image: npt.NDArray[np.int64]
    """Position of the image in the batch."""
    query: npt.NDArray[np.int64]
    """Position of the query in its image."""
    target: npt.NDArray[np.int64]
    """Position of the object among the objects of all images, concatenated."""


@dataclass(frozen=True)
class HungarianMatcher:
    """Matches the objects of each image with the queries that cost least, for each layer on its own.

    The cost is `class_cost` × focal cost + `box_cost` × L1 distance − `giou_cost` × GIoU. The focal cost, with α and γ,
    is the focal loss of the object's class if it were positive minus the loss if it were negative.
    """

    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Sequence[Mapping[str, Tensor]],
        names: Sequence[str] | None = None,
    ) -> Matches:
        """Match the queries of L layers with the objects of N images.

        The costs of all layers come to the host in one copy, the only one of a training step.

        Args:
            logits: shape (L, N, Q, C).
            boxes: cxcywh, shape (L, N, Q, 4).
            targets: for each image `labels` (M,) and `boxes` (M, 4), cxcywh; an `image_id` is named in an error.
            names: what the L layers are called in an error.

        Returns:
            Pairs of shape (L, P), where P is the sum of min(Q, M) over the images.

        Raises:
            InputError: there are not as many targets as images.
            NonFiniteError: a cost is NaN or infinite, because a prediction or a target box is.
        """
        # Here, so that importing the losses does not import scipy.
        from scipy.optimize import linear_sum_assignment

        layers, images = boxes.shape[:2]
        if len(targets) != images:
            raise InputError(f"got {len(targets)} targets for {images} images; give one dict for each image.")
        labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
        objects = pad_sequence([target["boxes"] for target in targets], batch_first=True)
        with torch.autocast(boxes.device.type, enabled=False):
            costs = self.costs(logits, boxes, labels, objects.to(boxes.dtype)).cpu().numpy()
        _check_costs(costs, targets, names)

        counts = [len(target["labels"]) for target in targets]
        pairs = [
            np.array([linear_sum_assignment(cost[:, :count]) for cost in costs[:, image]])  # (L, 2, P of this image)
            for image, count in enumerate(counts)
        ]
        query, target = np.concatenate(pairs, axis=2).swapaxes(0, 1)
        image = np.repeat(np.arange(images), [pair.shape[2] for pair in pairs])
        first_target = np.cumsum([0, *counts[:-1]])
        return Matches(np.tile(image, (layers, 1)), query, target + first_target[image])

    def costs(self, logits: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor) -> Tensor:
        """Return the cost of every query for every object of its image.

        Args:
            logits: shape (L, N, Q, C).
            boxes: cxcywh, shape (L, N, Q, 4).
            labels: classes of the objects, int64, shape (N, M).
            objects: their boxes, cxcywh, shape (N, M, 4).

        Returns:
            Shape (L, N, Q, M).
        """
        index = labels[None, :, None].expand(*logits.shape[:3], -1)
        probability = logits.gather(-1, index).sigmoid()
        positive = -self.alpha * (1 - probability) ** self.gamma * (probability + 1e-8).log()
        negative = -(1 - self.alpha) * probability**self.gamma * (1 - probability + 1e-8).log()
        distance = torch.cdist(boxes, objects[None], p=1)
        giou = iou_and_giou(boxes.unsqueeze(-2), objects[None, :, None])[1]
        return self.class_cost * (positive - negative) + self.box_cost * distance - self.giou_cost * giou


def union(matches: Matches) -> Matches:
    """Join the matches of all layers into one set that they share (GO-LSD of D-FINE, arXiv 2410.13842, section 4.2).

    A query that the layers matched with different objects keeps the one that most of them chose; of equals, the first.
    (Which of equals the authors keep depends on how torch sorts: theirs differs from here where many layers disagree.)

    Args:
        matches: pairs of shape (L, P).

    Returns:
        Pairs of shape (1, P'), sorted by image and query, in which every query occurs once.
    """
    pairs = np.stack(matches, axis=-1).reshape(-1, 3)
    pairs, votes = np.unique(pairs, axis=0, return_counts=True)
    image, query, target = pairs[np.lexsort((pairs[:, 2], -votes, pairs[:, 1], pairs[:, 0]))].T
    first = np.diff(image, prepend=-1).astype(bool) | np.diff(query, prepend=-1).astype(bool)
    return Matches(image[None, first], query[None, first], target[None, first])


def _check_costs(
    costs: npt.NDArray[np.floating], targets: Sequence[Mapping[str, Tensor]], names: Sequence[str] | None
) -> None:
    broken = np.argwhere(~np.isfinite(costs).all(axis=(2, 3)))
    if len(broken):
        outputs = [names[layer] if names else f"layer {layer}" for layer in dict.fromkeys(broken[:, 0].tolist())]
        images = [_image_name(index, targets[index]) for index in sorted(set(broken[:, 1].tolist()))]
        raise NonFiniteError(
            f"matching costs are not finite, of {_listed('output', outputs)} in {_listed('image', images)} of the "
            "batch: predictions or target boxes hold NaN or infinity."
        )


def _image_name(index: int, target: Mapping[str, Tensor]) -> str:
    return f"{index} (id {int(target['image_id'])})" if "image_id" in target else str(index)


def _listed(noun: str, items: Sequence[str]) -> str:
    return f"{noun}{'s' if len(items) > 1 else ''} {', '.join(items)}"
