from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from detectors.backbones import build_backbone
from vfmdistill.errors import UnknownNameError, WeightsError


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
    with pytest.raises(WeightsError, match=r"no weights file .*nothing\.pth"):
        build_backbone("hgnetv2_b0", (3,), pretrained=str(tmp_path / "nothing.pth"))


def test_without_network_the_way_by_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, pretrained: bool, **_: object) -> nn.Module:
        assert pretrained
        raise OSError("name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"hgnetv2_b0.*service not known.*pretrained_backbone='/path/to/"):
        build_backbone("hgnetv2_b0", (3,), pretrained=True)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="hgnetv2_b0"):
        build_backbone("hgnetv2_b00", (3,))
