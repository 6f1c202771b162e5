"""DFINEDecoder: boxes as edge distributions that every layer refines (D-FINE, arXiv 2410.13842)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from detectors.conv_blocks import Activation, ConvNorm
from detectors.decoders.deformable_attention import DeformableAttention, split_heads
from detectors.decoders.denoising import DenoisingEmbedding, prepend
from detectors.decoders.distribution import distances_to_boxes, weighting_function
from detectors.decoders.layers import MLP, DecoderLayer, Gate
from detectors.decoders.precision import at_least_float32
from detectors.decoders.prediction import Prediction, Targets, split_queries
from detectors.decoders.query_selection import QuerySelection, prior_bias


class LocationQuality(nn.Module):
    """Corrects class logits by how sharp the edge distributions are (LQE of D-FINE).

    Args:
        reg_max: number of the last bin.
        activation: class of the perceptron's activation.
        top: how many of the largest probabilities of each edge are looked at, besides their mean.
        hidden: hidden width of the perceptron.
    """

    def __init__(self, reg_max: int, activation: Activation, top: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.bins, self.top = reg_max + 1, top
        self.perceptron = MLP(4 * (top + 1), hidden, 1, activation=activation, zero_last=True)

    def forward(self, logits: Tensor, corners: Tensor) -> Tensor:
        """Return the corrected logits (N, Q, num_classes); `corners` has the shape (N, Q, 4 · (reg_max + 1))."""
        probabilities = torch.unflatten(corners, -1, (4, self.bins)).softmax(dim=-1)
        largest = probabilities.topk(self.top, dim=-1).values
        sharpness = torch.cat([largest, largest.mean(dim=-1, keepdim=True)], dim=-1).flatten(2)
        corrected: Tensor = logits + self.perceptron(sharpness.to(logits.dtype))
        return corrected


class Stage(nn.Module):
    """Holds one decoder layer and the heads that read it: classes, edge distributions, location quality."""

    def __init__(self, layer: DecoderLayer, dim: int, num_classes: int, reg_max: int, activation: Activation) -> None:
        super().__init__()
        self.layer = layer
        self.score_head = nn.Linear(dim, num_classes)
        self.corner_head = MLP(dim, dim, dim, 4 * (reg_max + 1), activation=activation, zero_last=True)
        self.quality = LocationQuality(reg_max, activation)
        nn.init.constant_(self.score_head.bias, prior_bias())


class DFINEDecoder(nn.Module):
    """Decoder of D-FINE, DEIM and RT-DETRv4.

    The first layer predicts a box for each query. From then on every layer adds to four distributions over the offsets
    of that box's edges; the expectations of the distributions are the layer's box.

    Args:
        in_channels: channels of each map, fine to coarse.
        num_classes: number of classes.
        dim: width of the queries.
        num_heads: heads of all attentions.
        feedforward: hidden width of the layers' feed-forward part.
        num_layers: decoder layers in training.
        eval_index: the layer that answers outside training; later ones are not run. Negative counts from the end.
        num_points: sampling points on each map.
        num_queries: object queries.
        num_denoising: denoising queries in training; 0 for none, then no class embedding is made either.
        label_noise: see `contrastive_denoising`.
        box_noise: see `contrastive_denoising`.
        flip: see `contrastive_denoising`.
        position_widths: hidden widths of the perceptron that embeds boxes, in units of `dim`.
        reg_max: number of the last bin of the edge distributions.
        reg_scale: curvature of the bins' offsets.
        activation: class of all activations.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        dim: int = 256,
        num_heads: int = 8,
        feedforward: int = 1024,
        num_layers: int = 6,
        eval_index: int = -1,
        num_points: Sequence[int] = (3, 6, 3),
        num_queries: int = 300,
        num_denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        flip: bool = True,
        position_widths: Sequence[int] = (2,),
        reg_max: int = 32,
        reg_scale: float = 4.0,
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_heads, self.reg_max = num_classes, num_heads, reg_max
        self.num_queries = num_queries
        self.eval_index = range(num_layers)[eval_index]

        self.input_projections = nn.ModuleList(
            nn.Identity() if channels == dim else ConvNorm(channels, dim) for channels in in_channels
        )
        self.selection = QuerySelection(dim, num_classes, activation)
        noise = {"num_denoising": num_denoising, "label_noise": label_noise, "box_noise": box_noise, "flip": flip}
        self.denoising_embedding = DenoisingEmbedding(num_classes, dim, **noise) if num_denoising > 0 else None
        self.position_head = MLP(4, *(factor * dim for factor in position_widths), dim, activation=activation)
        self.first_box_head = MLP(dim, dim, dim, 4, activation=activation, zero_last=True)
        self.stages = nn.ModuleList(
            Stage(
                DecoderLayer(
                    dim,
                    num_heads,
                    feedforward,
                    activation,
                    sampling=DeformableAttention(dim, num_heads, num_points),
                    merge=Gate(dim),
                ),
                dim,
                num_classes,
                reg_max,
                activation,
            )
            for _ in range(num_layers)
        )
        # Part of the published state dicts and parameter counts, but never trained.
        self.up = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([float(reg_scale)]), requires_grad=False)

        for projection in self.input_projections:
            if isinstance(projection, ConvNorm):
                nn.init.xavier_uniform_(projection.conv.weight)
        for layer in self.position_head.layers[:2]:
            nn.init.xavier_uniform_(layer.get_parameter("weight"))

    def forward(self, features: Sequence[Tensor], targets: Targets | None = None) -> dict[str, Any]:
        """Detect objects.

        Args:
            features: maps, shape (N, C, h, w) each, fine to coarse.
            targets: in training, for each image `labels` (M,), int64, and `boxes` (M, 4), cxcywh in [0, 1]; without
                them there is no denoising. Not looked at outside training.

        Returns:
            `pred_logits` (N, Q, num_classes) and `pred_boxes` (N, Q, 4), cxcywh in [0, 1]. In training also
            `pred_corners` (N, Q, 4 · (reg_max + 1)) and `ref_points` (N, Q, 4) of the last layer, `up` and `reg_scale`
            (1,); `aux_outputs`, the same of all layers before with `teacher_corners` and `teacher_logits` of the last;
            `pre_outputs` and `enc_aux_outputs`, logits and boxes of the first layer before refinement and of the
            selection; and, with denoising, `dn_outputs` (all layers), `dn_pre_outputs` and `dn_meta`.
        """
        maps = [project(x) for project, x in zip(self.input_projections, features, strict=True)]
        selected = self.selection(maps, self.num_queries)
        noisy = None
        if self.training and targets is not None and self.denoising_embedding is not None:
            noisy = self.denoising_embedding.queries(targets, selected.content.shape[1])
        content, box_logits, mask = prepend(noisy, selected.content.detach(), selected.boxes.detach())
        first, refined = self._refine(content, box_logits, maps, mask)
        if not self.training:
            return {key: refined[-1][key] for key in ("pred_logits", "pred_boxes")}

        denoised = {}
        if noisy is not None:
            sizes = noisy.meta["dn_num_split"]
            dn_first, first = split_queries(first, sizes)
            dn_refined, refined = zip(*(split_queries(prediction, sizes) for prediction in refined), strict=True)
            denoised = {
                "dn_outputs": [_taught(prediction, dn_refined[-1]) for prediction in dn_refined],
                "dn_pre_outputs": dn_first,
                "dn_meta": noisy.meta,
            }
        return {
            **refined[-1],
            "up": self.up,
            "reg_scale": self.reg_scale,
            "aux_outputs": [_taught(prediction, refined[-1]) for prediction in refined[:-1]],
            "enc_aux_outputs": [{"pred_logits": selected.logits, "pred_boxes": selected.boxes.sigmoid()}],
            "enc_meta": {"class_agnostic": False},
            "pre_outputs": first,
            **denoised,
        }

    def _refine(
        self, content: Tensor, box_logits: Tensor, maps: Sequence[Tensor], mask: Tensor | None
    ) -> tuple[Prediction, Sequence[Prediction]]:
        """Return what the first layer says before refinement, and what all say.

        Outside training the former is empty and only the answering layer is heard.
        """
        values = split_heads(maps, self.num_heads)
        reg_scale = at_least_float32(self.reg_scale)
        bin_offsets = weighting_function(self.reg_max, at_least_float32(self.up), reg_scale)
        boxes = box_logits.sigmoid()
        first: Prediction = {}
        refined: list[Prediction] = []
        last = len(self.stages) - 1 if self.training else self.eval_index
        for index, stage in enumerate(islice(cast("Sequence[Stage]", self.stages), last + 1)):
            position = self.position_head(boxes.to(content.dtype)).clamp(-10, 10)
            seen = content.detach()
            content = stage.layer(content, position, boxes, values, mask)
            if index == 0:
                start = (at_least_float32(self.first_box_head(content)) + boxes.logit(eps=1e-5)).sigmoid()
                reference_points = start.detach()
                if self.training:
                    first = {"pred_logits": stage.score_head(content), "pred_boxes": start}
                corners = at_least_float32(stage.corner_head(content))
            else:
                corners = corners + at_least_float32(stage.corner_head(content + seen))
            distances = (torch.unflatten(corners, -1, (4, self.reg_max + 1)).softmax(dim=-1) * bin_offsets).sum(-1)
            new_boxes = distances_to_boxes(reference_points, distances, reg_scale)
            if self.training or index == last:
                refined.append(
                    {
                        "pred_logits": stage.quality(stage.score_head(content), corners),
                        "pred_boxes": new_boxes,
                        "pred_corners": corners,
                        "ref_points": reference_points,
                    }
                )
            boxes = new_boxes.detach()
        return first, refined


def _taught(prediction: Prediction, teacher: Prediction) -> Prediction:
    return {**prediction, "teacher_corners": teacher["pred_corners"], "teacher_logits": teacher["pred_logits"]}
