from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from detectors.backbones import build_backbone
from detectors.key_maps import reference_key
from vfmdistill.errors import InputError, UnknownNameError, WeightsError


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "stages", "freeze_norms", "parameters"),
    [  # measured on the authors' backbones, RT-DETRv4 commit df44122
        ("hgnetv2_b0", (1, 2, 3), False, 1_850_396),
        ("hgnetv2_b0", (2, 3), False, 1_850_396),
        ("hgnetv2_b2", (1, 2, 3), False, 6_026_626),
        ("hgnetv2_b4", (1, 2, 3), False, 13_553_376),
        ("hgnetv2_b4", (1, 2, 3), True, 13_507_680),
        ("hgnetv2_b5", (1, 2, 3), True, 33_231_840),
        ("resnet18d", (1, 2, 3), False, 11_199_968),
        ("resnet34d", (1, 2, 3), False, 21_308_128),
        ("resnet50d", (1, 2, 3), False, 23_527_264),
        ("resnet50d", (1, 2, 3), True, 23_474_016),
        ("resnet101d", (1, 2, 3), True, 42_413_920),
    ],
)
def test_number_of_parameters(name: str, stages: tuple[int, ...], freeze_norms: bool, parameters: int) -> None:
    with torch.device("meta"):
        assert num_parameters(build_backbone(name, stages, freeze_norms=freeze_norms)) == parameters


def test_maps_go_from_fine_to_coarse() -> None:
    backbone = build_backbone("hgnetv2_b0", (1, 2, 3))
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(2, 256, 8, 12), (2, 512, 4, 6), (2, 1024, 2, 3)]
    assert backbone.feature_info.channels() == [256, 512, 1024]
    assert backbone.feature_info.reduction() == [8, 16, 32]


def test_frozen_norms_and_stem_do_not_change_in_training() -> None:
    backbone = build_backbone("hgnetv2_b0", (2, 3), freeze_norms=True, freeze_stem=True).train()
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    sum(x.sum() for x in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(value, before[key]) for key, value in backbone.named_buffers())
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.grad is not None}
    assert trained == {"stages_0", "stages_1", "stages_2", "stages_3"}


@pytest.mark.parametrize(("depth", "channels"), [(18, [128, 256, 512]), (50, [512, 1024, 2048])])
def test_resnet_vd(depth: int, channels: list[int]) -> None:
    """The first block of every stage has a projection, after an average pool where the stage halves the map."""
    backbone = build_backbone(f"resnet{depth}d", (1, 2, 3), freeze_stem=True).train()
    assert backbone.feature_info.channels() == channels
    assert backbone.feature_info.reduction() == [8, 16, 32]
    for stage in (1, 2, 3, 4):
        first, *others = backbone.get_submodule(f"layer{stage}")
        assert isinstance(first.downsample[1], nn.Conv2d)
        assert isinstance(first.downsample[0], nn.Identity if stage == 1 else nn.AvgPool2d)
        assert all(block.downsample is None for block in others)
        assert all(block.bn2.weight.min() == 1 for block in (first, *others))
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]
    sum(x.sum() for x in maps).backward()
    untrained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.grad is None}
    assert untrained == {"conv1", "bn1"}


def test_weights_without_the_first_projection_keep_their_meaning(tmp_path: Path) -> None:
    """timm's ResNet-18-d has no projection in the first stage: there it starts as the identity."""
    torch.manual_seed(0)
    classifier = timm.create_model("resnet18d", num_classes=10).eval()
    save_file(classifier.state_dict(), tmp_path / "timm.safetensors")
    backbone = build_backbone("resnet18d", (3,), pretrained=tmp_path / "timm.safetensors").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[0], classifier.forward_features(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18d", "resnet50d", "hgnetv2_b0"])
def test_files_under_the_authors_names(tmp_path: Path, name: str) -> None:
    """RT-DETR's and D-FINE's own ImageNet files, as they name their tensors."""
    source = build_backbone(name, (3,))
    state = {reference_key(f"backbone.{key}").removeprefix("backbone."): x for key, x in source.state_dict().items()}
    assert state.keys() != source.state_dict().keys()
    torch.save(state, tmp_path / "authors.pth")
    loaded = build_backbone(name, (3,), pretrained=tmp_path / "authors.pth").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in source.state_dict().items())
    damaged = {key: value for key, value in state.items() if "short" not in key or "conv.weight" not in key}
    if len(damaged) < len(state):  # half a projection is no projection
        torch.save(damaged, tmp_path / "damaged.pth")
        with pytest.raises(WeightsError, match="tensors are missing"):
            build_backbone(name, (3,), pretrained=tmp_path / "damaged.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_of_the_whole_classifier(tmp_path: Path, suffix: str) -> None:
    classifier = timm.create_model("hgnetv2_b0", num_classes=10).eval()
    path = tmp_path / f"weights.{suffix}"
    save_file(classifier.state_dict(), path) if suffix == "safetensors" else torch.save(classifier.state_dict(), path)
    backbone = build_backbone("hgnetv2_b0", (3,), pretrained=path).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[0], classifier.forward_features(images))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"stem.stem1.conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other.safetensors does not hold .* tensors are missing"):
        build_backbone("hgnetv2_b0", (3,), pretrained=tmp_path / "other.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights file .*nothing\.pth. does not exist"):
        build_backbone("hgnetv2_b0", (3,), pretrained=str(tmp_path / "nothing.pth"))


def test_without_network_the_way_by_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, pretrained: bool, **_: object) -> nn.Module:
        assert pretrained
        raise OSError("name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"hgnetv2_b0.*service not known.*pretrained_backbone='/path/to/"):
        build_backbone("hgnetv2_b0", (3,), pretrained=True)


def test_stages_that_do_not_exist_are_named() -> None:
    with pytest.raises(InputError, match=r"'hgnetv2_b0' does not have all of the stages \(3, 4\)"):
        build_backbone("hgnetv2_b0", (3, 4))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="hgnetv2_b0"):
        build_backbone("hgnetv2_b00", (3,))


@pytest.mark.parametrize("name", ["hgnetv2_b0", "resnet18d"])
def test_without_weights_convolutions_start_as_torch_draws_them(name: str) -> None:
    """Uniform with deviation 1 / √(3 · inputs), which the authors' backbones leave as it is."""
    torch.manual_seed(0)
    for key, module in build_backbone(name, (1, 2, 3)).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            inputs = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((3 * inputs) ** -0.5, rel=0.06), key
            assert module.weight.abs().max() <= inputs**-0.5
