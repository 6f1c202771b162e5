"""The training loss of the bundled detectors: classification, boxes and edge distributions of every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from detectors.losses.boxes import box_l1_loss, giou_loss, iou_and_giou
from detectors.losses.classification import focal_loss, matchability_aware_loss, varifocal_loss
from detectors.losses.layers import (
    Edges,
    Layers,
    Pairs,
    denoising_layers,
    denoising_pairs,
    matching_layers,
    matching_pairs,
    to_device,
)
from detectors.losses.localization import (
    decoupled_distillation_focal_loss,
    decoupled_mean,
    fine_grained_localization_loss,
    matched_share,
)
from detectors.losses.matcher import HungarianMatcher, union
from vfmdistill.errors import InputError, unknown_name

CLASSIFICATION: dict[str, Callable[..., Tensor]] = {
    "mal": matchability_aware_loss,
    "vfl": varifocal_loss,
    "focal": focal_loss,
}
BOX_WEIGHTS = {"bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}


class Matching(NamedTuple):
    """Which queries answer for which objects."""

    own: Pairs
    """Each layer's own matches, for the classification loss."""
    shared: Pairs
    """Those that box and edge losses take."""
    counts: Tensor
    """Objects, matches of box and edge losses, matched queries, all queries; shape (4,)."""


class _Divisors(NamedTuple):
    """What sums over a batch are divided by."""

    own: Tensor
    """The classification loss."""
    shared: Tensor
    """Box losses and FGL."""
    matched: Tensor | int
    """DDF of matched queries."""
    others: Tensor | int
    """DDF of the others."""


class Criterion(nn.Module):
    """Compares the training outputs of a DETR with the objects of its images.

    Each decoder layer, the decoder's pre-output and the encoder's outputs are matched with the objects on their own.
    The classification loss takes a layer's own matches and is divided by the number of objects. With `union_matching`
    the box and edge losses of all layers take the union of their matches and are divided by its size (GO-LSD of D-FINE,
    arXiv 2410.13842, section 4.2); without, they go as the classification loss. Denoising queries know their objects:
    all their losses are divided by the number of objects times that of denoising groups. These numbers, and those that
    the means of DDF are taken over, are means over all processes, at least 1: the losses' mean over the processes is
    that of the joined batch, denoising aside, whose groups depend on the images that a process has together.

    Losses are computed in float32 or, for float64 outputs, in float64, also under autocast. A loss that is not finite
    is returned as it is: see `detectors.losses.finite.check_finite`.

    Args:
        num_classes: number of object classes.
        matcher: None for `HungarianMatcher()`.
        classification: "mal" (DEIM, RT-DETRv4), "vfl" (RT-DETR, D-FINE) or "focal".
        gamma: focusing exponent of the classification loss; None for its paper's (mal 1.5, vfl and focal 2).
        alpha: weight of the negatives in vfl (None: 0.75) or of the positives in focal (None: 0.25); mal has none.
        weights: what each loss is multiplied with, by its name without prefix: the classification loss's (default 1),
            "bbox" (5), "giou" (2), "fgl" (0.15), "ddf" (1.5). Names left out keep their default.
        reg_max: number of the last bin of the edge distributions.
        union_matching: whether box and edge losses take the union of all layers' matches.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher | None = None,
        *,
        classification: str = "mal",
        gamma: float | None = None,
        alpha: float | None = None,
        weights: Mapping[str, float] | None = None,
        reg_max: int = 32,
        union_matching: bool = True,
    ) -> None:
        super().__init__()
        if classification not in CLASSIFICATION:
            raise unknown_name("classification loss", classification, CLASSIFICATION)
        self.num_classes = num_classes
        self.matcher = matcher or HungarianMatcher()
        self.classification = classification
        settings = {"gamma": gamma, "alpha": alpha if classification != "mal" else None}
        self.classification_loss = partial(
            CLASSIFICATION[classification], **{name: value for name, value in settings.items() if value is not None}
        )
        self.weights = {classification: 1.0, **BOX_WEIGHTS}
        for name, weight in (weights or {}).items():
            if name not in self.weights:
                raise unknown_name("loss", name, self.weights)
            self.weights[name] = weight
        self.reg_max = reg_max
        self.union_matching = union_matching

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Tensor]],
        matching: Matching | None = None,
        counts: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return every loss, weighted, as a scalar under its name.

        Args:
            outputs: what the detector returns in training: `pred_logits` (N, Q, C) and `pred_boxes` (N, Q, 4), cxcywh,
                of the final layer; the same of the layers before it in the list `aux_outputs` and of the encoder in the
                list `enc_aux_outputs`. With edge distributions also `pred_corners` (N, Q, 4 · (reg_max + 1)),
                `ref_points` (N, Q, 4), `up`, `reg_scale` and `pre_outputs`; in `aux_outputs` then `teacher_corners` and
                `teacher_logits` of the final layer. With denoising `dn_outputs` (all layers, the final one last),
                `dn_meta` and, with edge distributions, `dn_pre_outputs`.
            targets: for each image `labels` (M,), int64, from 0 to C − 1, and `boxes` (M, 4), cxcywh in [0, 1]; M may
                be 0. Their values are not checked, which would wait for the device.
            matching: what `match` gave for these outputs; None: they are matched here.
            counts: the mean of the parts' `Matching.counts` over all parts of a batch and all processes, for a batch
                that is accumulated from several; None: this is all of it, and the processes are asked for theirs.

        Returns:
            `loss_mal` (or vfl, focal), `loss_bbox`, `loss_giou` and, with edge distributions, `loss_fgl` of the final
            layer; of the others with the suffix `_aux_i`, `_pre`, `_enc_i`, `_dn_i` or `_dn_pre`. `loss_ddf` for the
            decoder layers before the final one, about zero for a layer that already agrees with it.

        Raises:
            InputError: outputs, targets and number of classes do not fit each other.
            NonFiniteError: predictions or target boxes hold NaN or infinity.
        """
        with torch.autocast(outputs["pred_boxes"].device.type, enabled=False):
            own, shared, own_counts = matching or self.match(outputs, targets)
            layers = matching_layers(outputs, self.reg_max)
            labels = torch.cat([target["labels"] for target in targets])
            boxes = torch.cat([target["boxes"] for target in targets]).to(layers.boxes.dtype)
            means = mean_over_processes(own_counts) if counts is None else counts
            objects, num_shared, matched, queries = means.to(layers.boxes).unbind()
            others = queries - matched
            share = matched_share(matched, others)
            divisors = _Divisors(*(count.clamp(min=1) for count in (objects, num_shared, matched, others)))
            losses = self._losses(layers, labels, boxes, own, shared, divisors, share)

            denoising = denoising_layers(outputs, self.reg_max)
            if denoising is not None:
                pairs = denoising_pairs(
                    outputs["dn_meta"], [len(target["labels"]) for target in targets], layers.boxes.device
                )
                images, denoising_queries = denoising.boxes.shape[1:3]
                positive = pairs.query.shape[1]
                divisor = divisors.own * outputs["dn_meta"]["dn_num_group"]
                negative = images * denoising_queries - positive
                divisors = _Divisors(divisor, divisor, max(positive, 1), max(negative, 1))
                losses |= self._losses(denoising, labels, boxes, pairs, pairs, divisors, share)
        return losses

    @torch.no_grad()
    def match(self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]) -> Matching:
        """Match every layer with the objects, without asking the other processes.

        A batch that is accumulated from parts of equal size gives the losses and gradients of the whole if each part's
        losses are divided by the number of parts and computed with the mean of the parts' counts.

        Args:
            outputs: as for `forward`.
            targets: as for `forward`.

        Raises:
            InputError: as `forward`.
            NonFiniteError: as `forward`.
        """
        with torch.autocast(outputs["pred_boxes"].device.type, enabled=False):
            layers = matching_layers(outputs, self.reg_max)
            device = layers.boxes.device
            if layers.logits.shape[-1] != self.num_classes:
                raise InputError(
                    f"the outputs have {layers.logits.shape[-1]} classes, the criterion {self.num_classes}; "
                    "build both with the same num_classes."
                )
            if uneven := [i for i, target in enumerate(targets) if len(target["labels"]) != len(target["boxes"])]:
                raise InputError(f"images {uneven} of the batch have other numbers of labels than of boxes.")
            names = [suffix.removeprefix("_") or "main" for suffix in layers.suffixes]
            matches = self.matcher(layers.logits, layers.boxes, targets, names)
            own = matching_pairs(matches, device)
            shared = matching_pairs(union(matches), device) if self.union_matching else own
            objects, matched = sum(len(target["labels"]) for target in targets), shared.query.shape[1]
            images, queries = layers.boxes.shape[1:3]
            counts = [objects, matched if self.union_matching else objects, matched, images * queries]
            return Matching(own, shared, to_device(np.array(counts), device).to(layers.boxes.dtype))

    def _losses(
        self,
        layers: Layers,
        labels: Tensor,
        boxes: Tensor,
        own: Pairs,
        shared: Pairs,
        divisors: _Divisors,
        share: Tensor,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of all layers by name; `share` is the matched queries' weight in DDF."""
        values = {self.classification: self._classification(layers, labels, boxes, own) / divisors.own}
        predicted, wanted = layers.boxes[shared.at(len(layers.boxes))], boxes[shared.target]
        values["bbox"] = box_l1_loss(predicted, wanted).sum(-1) / divisors.shared
        values["giou"] = giou_loss(predicted, wanted).sum(-1) / divisors.shared
        if layers.edges is not None:
            fgl, ddf = _edge_losses(layers.edges, layers.boxes, boxes, shared, divisors, share)
            values["fgl"] = fgl / divisors.shared
            if ddf is not None:
                values["ddf"] = ddf
        # Edge losses exist for the leading layers only.
        return {
            f"loss_{name}{suffix}": self.weights[name] * loss
            for name, per_layer in values.items()
            for suffix, loss in zip(layers.suffixes, per_layer.unbind(), strict=False)
        }

    def _classification(self, layers: Layers, labels: Tensor, boxes: Tensor, pairs: Pairs) -> Tensor:
        where = pairs.at(len(layers.boxes))
        iou, _ = iou_and_giou(layers.boxes.detach()[where], boxes[pairs.target])
        classes = labels.new_full(layers.logits.shape[:-1], self.num_classes)
        classes[where] = labels[pairs.target]
        quality = layers.logits.new_zeros(layers.logits.shape[:-1])
        quality[where] = iou.to(quality.dtype)
        return self.classification_loss(layers.logits, classes, quality).sum((-3, -2, -1))


def _edge_losses(
    edges: Edges, predicted: Tensor, boxes: Tensor, pairs: Pairs, divisors: _Divisors, share: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the FGL sums of K layers, shape (K,), and the DDF losses of the K − 1 before the final one, or None."""
    where = pairs.at(len(edges.corners))
    wanted = boxes[pairs.target[: len(edges.corners)]]
    iou, _ = iou_and_giou(predicted.detach()[where], wanted)
    fgl = fine_grained_localization_loss(
        edges.corners[where], edges.reference_points[where], wanted, iou, edges.up, edges.reg_scale
    ).sum(-1)
    if edges.teacher_corners is None or edges.teacher_confidence is None:
        return fgl, None
    students = len(edges.teacher_corners)
    where = pairs.at(students)
    confidence = edges.teacher_confidence.detach().clone()
    confidence[where] = iou[:students].to(confidence.dtype)
    matched = torch.zeros_like(confidence, dtype=torch.bool)
    matched[where] = True
    values = decoupled_distillation_focal_loss(edges.corners[:students], edges.teacher_corners, confidence)
    return fgl, decoupled_mean(values, matched, divisors.matched, divisors.others, share)


def mean_over_processes(counts: Tensor) -> Tensor:
    """Return each count's mean over the processes, all of which have to call it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
        counts /= torch.distributed.get_world_size()
    return counts
