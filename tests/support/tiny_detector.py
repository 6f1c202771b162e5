"""A detector of milliseconds, with random weights, for the classes of the toy data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import detectors
from detectors.data.toy import CATEGORY_IDS
from detectors.data.toy_scene import SHAPES


def tiny_detector(**options: Any) -> detectors.Detector:
    """Return a small DEIM in eval mode, for images of 64 × 96; keywords are those of `detectors.build`."""
    settings: dict[str, Any] = {"decoder_layers": 2, "num_queries": 20, "num_denoising": 0, "input_size": (64, 96)}
    if "num_classes" not in options:
        settings["class_names"] = list(SHAPES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = detectors.build("deim_n", **{**settings, **options})
        # With fresh weights activations die away, and the prior finds nothing: rounding would decide the order.
        for module in model.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(model.decoder.stages[-1].score_head.weight, std=0.2)
        nn.init.constant_(model.decoder.stages[-1].score_head.bias, -2.0)
    if model.class_names == list(SHAPES):
        model.category_ids = list(CATEGORY_IDS)
    return model.eval()
