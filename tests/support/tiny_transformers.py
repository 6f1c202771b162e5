"""Small vision models of transformers, saved as transformers saves them, and what a teacher sees with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from vfmdistill.teachers.catalog import loader_for, teacher_spec
from vfmdistill.teachers.readout import Readout

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 48,
    "patch_size": 8,
}
HIERARCHICAL = {
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "dinov3_convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 64, "window_size": 4},
    "hiera": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": [64, 64],
        "num_query_pool": 1,
        "masked_unit_size": [2, 2],  # as wide as all pooling together, as in the published networks
    },
}


def config_of(kind: str, **options: Any) -> Any:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    return transformers.CONFIG_MAPPING[kind](**(HIERARCHICAL.get(kind) or SMALL) | options)


def saved(network: Any, folder: Path, **processor: Any) -> str:
    """Save a network with norms and biases that are not what they begin with; the name of the teacher."""
    for key, parameter in network.named_parameters():
        if "norm" in key or "bias" in key or "position" in key or "token" in key:
            nn.init.normal_(parameter, std=0.5)
    network.eval().save_pretrained(folder)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"hf:{folder}"


def network_of(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config_of(kind, **options))


def features(name: str, images: Tensor, readout: Readout | None = None) -> tuple[Tensor, Tensor | None]:
    spec = teacher_spec(name)
    with torch.no_grad():
        output = loader_for(spec)(spec, True, None, readout).eval()(images)
    feature_map, summary = output
    return feature_map, summary


def as_tokens(feature_map: Tensor) -> Tensor:
    return feature_map.flatten(2).mT
