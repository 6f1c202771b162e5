"""RTDETRDecoder: boxes that every layer refines (RT-DETR, arXiv 2304.08069; RT-DETRv2, arXiv 2407.17140)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

from torch import Tensor, nn

from detectors.conv_blocks import Activation, ConvNorm
from detectors.decoders.deformable_attention import ProjectedDeformableAttention
from detectors.decoders.denoising import DenoisingEmbedding, prepend
from detectors.decoders.layers import MLP, AddNorm, DecoderLayer
from detectors.decoders.precision import at_least_float32
from detectors.decoders.prediction import Prediction, Targets, split_queries
from detectors.decoders.query_selection import QuerySelection, prior_bias


class BoxStage(nn.Module):
    """Holds one decoder layer and the heads that read it: classes and boxes."""

    def __init__(self, layer: DecoderLayer, dim: int, num_classes: int, activation: Activation) -> None:
        super().__init__()
        self.layer = layer
        self.score_head = nn.Linear(dim, num_classes)
        self.box_head = MLP(dim, dim, dim, 4, activation=activation, zero_last=True)
        nn.init.constant_(self.score_head.bias, prior_bias())


class RTDETRDecoder(nn.Module):
    """Decoder of RT-DETR, RT-DETRv2 and DEIM's variant of it.

    Each layer moves the boxes that the layer before has found.

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
        num_points: Sequence[int] = (4, 4, 4),
        num_queries: int = 300,
        num_denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        flip: bool = True,
        position_widths: Sequence[int] = (2,),
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_queries = num_classes, num_queries
        self.eval_index = range(num_layers)[eval_index]

        self.input_projections = nn.ModuleList(ConvNorm(channels, dim) for channels in in_channels)
        self.selection = QuerySelection(dim, num_classes, activation)
        noise = {"num_denoising": num_denoising, "label_noise": label_noise, "box_noise": box_noise, "flip": flip}
        self.denoising_embedding = DenoisingEmbedding(num_classes, dim, **noise) if num_denoising > 0 else None
        self.position_head = MLP(4, *(factor * dim for factor in position_widths), dim, activation=activation)
        self.stages = nn.ModuleList(
            BoxStage(
                DecoderLayer(
                    dim,
                    num_heads,
                    feedforward,
                    activation,
                    sampling=ProjectedDeformableAttention(dim, num_heads, num_points),
                    merge=AddNorm(dim),
                ),
                dim,
                num_classes,
                activation,
            )
            for _ in range(num_layers)
        )
        for projection in cast("Sequence[ConvNorm]", self.input_projections):
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
            `aux_outputs`, the same of all layers before the last; `enc_aux_outputs`, the same of the selection; and,
            with denoising, `dn_outputs` (all layers) and `dn_meta`.
        """
        maps = [project(x) for project, x in zip(self.input_projections, features, strict=True)]
        selected = self.selection(maps, self.num_queries)
        noisy = None
        if self.training and targets is not None and self.denoising_embedding is not None:
            noisy = self.denoising_embedding.queries(targets, selected.content.shape[1])
        content, box_logits, mask = prepend(noisy, selected.content.detach(), selected.boxes.detach())
        predictions = self._refine(content, box_logits, maps, mask)
        if not self.training:
            return dict(predictions[-1])

        denoised = {}
        if noisy is not None:
            sizes = noisy.meta["dn_num_split"]
            of_noisy, predictions = zip(*(split_queries(p, sizes) for p in predictions), strict=True)
            denoised = {"dn_outputs": list(of_noisy), "dn_meta": noisy.meta}
        return {
            **predictions[-1],
            "aux_outputs": list(predictions[:-1]),
            "enc_aux_outputs": [{"pred_logits": selected.logits, "pred_boxes": selected.boxes.sigmoid()}],
            "enc_meta": {"class_agnostic": False},
            **denoised,
        }

    def _refine(
        self, content: Tensor, box_logits: Tensor, maps: Sequence[Tensor], mask: Tensor | None
    ) -> Sequence[Prediction]:
        """Return what all layers say; outside training only what the answering one says."""
        boxes = start = box_logits.sigmoid()
        predictions: list[Prediction] = []
        last = len(self.stages) - 1 if self.training else self.eval_index
        for index, stage in enumerate(islice(cast("Sequence[BoxStage]", self.stages), last + 1)):
            position = self.position_head(boxes.to(content.dtype))
            content = stage.layer(content, position, boxes, maps, mask)
            move = at_least_float32(stage.box_head(content))
            moved = (move + boxes.logit(eps=1e-5)).sigmoid()
            if self.training:
                # A layer's loss also reaches the box that it starts from, one layer back and no further
                # ("look forward twice" of DINO, arXiv 2203.03605, section 3.5).
                answer = (move + start.logit(eps=1e-5)).sigmoid()
                predictions.append({"pred_logits": stage.score_head(content), "pred_boxes": answer})
            elif index == last:
                predictions.append({"pred_logits": stage.score_head(content), "pred_boxes": moved})
            start, boxes = moved, moved.detach()
        return predictions
