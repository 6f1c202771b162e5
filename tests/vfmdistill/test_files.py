"""Weights from files: the formats that people have on disk, and what is wrong with a file that does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vfmdistill.errors import WeightsError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers.files import load_strictly, read_state_dict

State = dict[str, Tensor]


def as_meta_dinov2(state: State) -> State:
    """timm's names turned into facebookresearch/dinov2's, class position and registers as there."""
    state = dict(state) | {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    if "reg_token" in state:
        class_position = torch.randn_like(state["cls_token"])
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - class_position
        state["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    return state


def as_chunked_dinov2(state: State) -> State:
    """With the blocks in four chunks, counted through, and without the mask token."""
    state = as_meta_dinov2(state)
    del state["mask_token"]
    return {re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 3}.{m[1]}.", k): v for k, v in state.items()}


def as_dino_training(state: State) -> dict[str, State]:
    backbone = {f"backbone.{key}": value for key, value in as_meta_dinov2(state).items()}
    return {"teacher": backbone | {"dino_head.mlp.0.weight": torch.zeros(2, 2)}}


def as_meta_dinov3(state: State) -> State:
    renamed = {}
    for key, value in state.items():
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens")
        renamed[key] = value
        if key.endswith("qkv.weight"):
            keys = torch.arange(len(value)) // (len(value) // 3) == 1
            renamed[key.replace("weight", "bias")] = keys * 0.1
            renamed[key.replace("weight", "bias_mask")] = (~keys).float()
    return renamed | {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.zeros(16)}


def as_dino_of_2021(state: State) -> dict[str, State]:
    backbone = {f"module.backbone.{key}": value for key, value in state.items()}
    return {"teacher": backbone | {"module.head.mlp.0.weight": torch.zeros(2, 2)}}


def as_wrapped_by_transformers(state: State) -> State:
    return {f"timm_model.{key}": value for key, value in state.items()}


def as_data_parallel(state: State) -> dict[str, object]:
    return {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}


def with_classifier(state: State) -> State:
    return state | {"head.weight": torch.zeros(10, 192), "head.bias": torch.zeros(10)}


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("dinov2_vits14", as_chunked_dinov2),
        ("dinov2_vits14", as_dino_training),
        ("dinov2_vits14_reg", as_meta_dinov2),
        ("dinov2_vits14_reg", as_chunked_dinov2),
        ("dinov3_vits16", as_meta_dinov3),
        ("timm:vit_tiny_patch16_224", as_data_parallel),
        ("timm:vit_tiny_patch16_224", with_classifier),
        ("timm:vit_tiny_patch16_224", as_dino_of_2021),
        ("timm:vit_tiny_patch16_224", as_wrapped_by_transformers),
    ],
)
def test_formats_round_trip(name: str, convert: Callable[[State], object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = Teacher(name, pretrained=False)
    for parameter in given.parameters():
        nn.init.normal_(parameter, std=0.05)
    torch.save(convert(given.network.network.state_dict()), tmp_path / "weights.pth")
    loaded = Teacher(name, weights=tmp_path / "weights.pth")
    images = torch.rand(1, 3, 128, 160)
    torch.testing.assert_close(loaded(images, (4, 5)).map, given(images, (4, 5)).map, rtol=1e-4, atol=1e-5)


def test_safetensors(tmp_path: Path) -> None:
    given = Teacher("timm:vit_tiny_patch16_224", pretrained=False)
    save_file(given.network.network.state_dict(), tmp_path / "weights.safetensors")
    before = torch.get_rng_state()
    loaded = Teacher("timm:vit_tiny_patch16_224", weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(images, (4, 4)).map, given(images, (4, 4)).map)


def test_half_precision_becomes_the_networks(tmp_path: Path) -> None:
    given = Teacher("timm:vit_tiny_patch16_224", pretrained=False)
    state = {key: tensor.half() for key, tensor in given.network.network.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    loaded = Teacher("timm:vit_tiny_patch16_224", weights=tmp_path / "weights.safetensors", dtype=torch.float32)
    for key, tensor in loaded.network.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[key].float())


def test_a_bias_that_the_network_lacks_is_not_dropped(tmp_path: Path) -> None:
    state = as_meta_dinov3(Teacher("dinov3_vits16", pretrained=False).network.network.state_dict())
    state["blocks.3.attn.qkv.bias"][7] = 0.1
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"blocks\.3\.attn\.qkv\.bias is not zero.*qkvb"):
        Teacher("dinov3_vits16", weights=tmp_path / "weights.pth")


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    state = network.state_dict()
    del state["1.bias"], state["2.num_batches_tracked"]
    state |= {"0.weight": torch.zeros(3, 4), "extra": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        load_strictly(network, state, "mine", "a.pth")
    message = str(caught.value)
    assert "'a.pth' do not fit teacher 'mine'" in message
    assert "1 missing: 1.bias; 1 left over: extra; 1 of another shape: 0.weight (3, 4) instead of (3, 2)." in message


def test_the_weights_of_another_teacher(tmp_path: Path) -> None:
    torch.save(Teacher("dinov2_vits14", pretrained=False).network.network.state_dict(), tmp_path / "weights.pth")
    nearest = r"The one given is as large as that of 'dinov2_vits14'\.$"
    with pytest.raises(WeightsError, match=rf"'dinov2_vits14_reg'.*1 missing: reg_token; .*{nearest}"):
        Teacher("dinov2_vits14_reg", weights=tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=rf"'dinov3_vits16'.*patch embedding.*{nearest}"):
        Teacher("dinov3_vits16", weights=tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=rf"'timm:resnet18'.*missing: conv1\.weight.*{nearest}"):
        Teacher("timm:resnet18", weights=tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"'timm:convnext_atto'.*missing: stem\.0\.weight.*left over: cls_token"):
        Teacher("timm:convnext_atto", weights=tmp_path / "weights.pth")


WEIGHT = {"a.weight": torch.ones(1)}
OTHER = {"a.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHT,
        {"model": WEIGHT, "epoch": 3},
        {"model_state": WEIGHT},
        {"weights": WEIGHT},
        {"teacher": WEIGHT, "student": OTHER},
        {"state_dict": OTHER, "state_dict_ema": WEIGHT},
        {"model": OTHER, "model_ema": WEIGHT},
        {"state_dict": {"module._orig_mod.a.weight": torch.ones(1)}},
        {"_orig_mod.module.a.weight": torch.ones(1)},
        {"state_dict": {"module.timm_model.module.a.weight": torch.ones(1)}},
        {"a._checkpoint_wrapped_module._orig_mod.weight": torch.ones(1)},
    ],
)
def test_wrappers_and_prefixes(content: dict[str, object], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert read_state_dict(tmp_path / "weights.pth") == WEIGHT


@pytest.mark.parametrize("averaged", ["teacher", "model_ema"])
def test_self_supervised_training_gives_its_average(averaged: str, tmp_path: Path) -> None:
    state = {f"{averaged}.backbone.a.weight": torch.ones(1), "student.backbone.a.weight": torch.zeros(1)}
    state |= {f"{averaged}.dino_head.mlp.0.weight": torch.zeros(1), "dino_loss.center": torch.zeros(1)}
    torch.save({"model": state, "iteration": 3}, tmp_path / "model_0000003.rank_0.pth")
    assert read_state_dict(tmp_path / "model_0000003.rank_0.pth") == WEIGHT


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth' does not exist"):
        read_state_dict(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state_dict(tmp_path / "list.pth")


def test_when_no_name_is_known(tmp_path: Path) -> None:
    torch.save({"encoder.w": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(
        WeightsError, match=r"left over: encoder\.w\. None of their names is known here\. Give the file"
    ):
        Teacher("timm:vit_tiny_patch16_224", weights=tmp_path / "weights.pth")


def test_a_torchscript_archive_is_not_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "ViT-B-16.pt")
    with pytest.raises(WeightsError, match=r"ViT-B-16\.pt' could not be read: .*TorchScript"):
        read_state_dict(tmp_path / "ViT-B-16.pt")
