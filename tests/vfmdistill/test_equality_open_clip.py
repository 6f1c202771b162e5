"""Checkpoints of OpenCLIP in timm's networks give the token features that OpenCLIP's own networks give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vfmdistill.teacher import Teacher
from vfmdistill.teachers.files import load_strictly, read_state_dict
from vfmdistill.teachers.key_maps import to_timm_names
from vfmdistill.teachers.key_maps_open_clip import to_open_clip_names

open_clip_model = pytest.importorskip("open_clip.model")

_TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
_TINY = {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 112}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm build its networks in small."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: create(*args, **(_TINY | options)))


def save_pt(state: dict[str, Tensor], folder: Path) -> Path:
    """As a training run of OpenCLIP does."""
    path = folder / "epoch_32.pt"
    torch.save({"epoch": 32, "name": "a", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def save_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    """As OpenCLIP's hub repositories have it."""
    path = folder / "open_clip_model.safetensors"
    save_file(state, path)
    return path


def randomized(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model.eval().requires_grad_(False)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("save", [save_pt, save_safetensors])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_clip(save: Callable[[dict[str, Tensor], Path], Path], quick_gelu: bool, tmp_path: Path) -> None:
    vision = {"layers": 2, "width": 48, "head_width": 24, "patch_size": 16, "image_size": 112}
    theirs = randomized(open_clip_model.CLIP(20, vision, _TEXT, quick_gelu=quick_gelu))
    model = f"vit_base_patch16_clip_{'quickgelu_' if quick_gelu else ''}224"
    teacher = Teacher(f"timm:{model}.openai", weights=save(theirs.state_dict(), tmp_path))
    images = torch.rand(2, 3, 112, 112)
    tokens = theirs.visual.forward_intermediates(images, indices=1, normalize_intermediates=True)
    features = teacher(images, (7, 7), (teacher.spec.mean, teacher.spec.std))
    torch.testing.assert_close(features.map, tokens["image_intermediates"][0], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("save", [save_pt, save_safetensors])
def test_siglip(save: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path) -> None:
    """With the activation that SigLIP was trained with, in place of the exact GELU that OpenCLIP takes from timm."""
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"}
    theirs = randomized(open_clip_model.CustomTextCLIP(48, vision | {"image_size": 112}, _TEXT))
    for module in theirs.visual.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
    path = save(theirs.state_dict(), tmp_path)
    teacher = Teacher("timm:vit_base_patch16_siglip_224.webli", weights=path)
    images = torch.rand(2, 3, 112, 112)
    expected = theirs.visual.trunk.forward_features(images).mT.unflatten(-1, (7, 7))
    features = teacher(images, (7, 7), (teacher.spec.mean, teacher.spec.std))
    torch.testing.assert_close(features.map, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(features.summary, theirs.visual.trunk(images), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("tiny")
def test_other_libraries_in_open_clips_tower(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vision = {"layers": 2, "width": 48, "head_width": 24, "patch_size": 16, "image_size": 112}
    tower = open_clip_model.CLIP(20, vision, _TEXT, quick_gelu=True).visual.eval()
    tower.proj = None
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 192}
    config = transformers.CLIPVisionConfig(**sizes, patch_size=16, image_size=112)
    theirs = randomized(transformers.CLIPVisionModel(config))
    theirs.save_pretrained(tmp_path)
    of_timm = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0)
    load_strictly(of_timm, to_timm_names(read_state_dict(tmp_path), of_timm, "mine"), "mine", tmp_path)

    images = torch.rand(2, 3, 112, 112)
    expected = theirs(images).pooler_output
    for state in (read_state_dict(tmp_path), of_timm.state_dict()):
        load_strictly(tower, to_open_clip_names(state, tower), "mine", tmp_path)
        torch.testing.assert_close(tower(images), expected, rtol=0, atol=1e-4)
        for parameter in tower.parameters():
            nn.init.zeros_(parameter)


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_open_clips_own_tower(prefix: str) -> None:
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64}
    whole = open_clip_model.CLIP(20, vision, _TEXT)
    state = {key.removeprefix("visual."): tensor for key, tensor in whole.state_dict().items() if "visual." in key}
    given = {f"{prefix}{key}": tensor for key, tensor in state.items()}
    whole.visual.proj = None
    found = to_open_clip_names(given, whole.visual)
    assert found.keys() == state.keys() - {"proj"}
    load_strictly(whole.visual, found, "mine", "a.pt")
