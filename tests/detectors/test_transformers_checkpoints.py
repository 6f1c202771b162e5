"""transformers' independent models and ours, with the same weights, see the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import detectors
from detectors.checkpoints import load_reference_checkpoint
from detectors.detector import Detector
from vfmdistill.errors import WeightsError

transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")

QUERIES, CLASSES = 30, 5

# Sizes of HGNetV2-B0 and the ResNet-vds in transformers' words, as in the published config.json files.
B0: dict[str, Any] = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "hidden_sizes": [64, 256, 512, 1024],
    "use_learnable_affine_block": True,
}
R18: dict[str, Any] = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
R50: dict[str, Any] = {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}

SMALL_RTDETR: dict[str, Any] = {
    "encoder_hidden_dim": 64, "encoder_ffn_dim": 96, "encoder_attention_heads": 4, "hidden_expansion": 0.5,
    "d_model": 64, "decoder_ffn_dim": 96, "decoder_attention_heads": 4, "decoder_layers": 2,
    "decoder_in_channels": [64, 64, 64],
}  # fmt: skip
SMALL: dict[str, Any] = {
    "encoder_dim": 64, "encoder_feedforward": 96, "encoder_heads": 4, "encoder_expansion": 0.5,
    "decoder_dim": 64, "decoder_feedforward": 96, "decoder_heads": 4, "decoder_layers": 2,
}  # fmt: skip


def dfine_n(**settings: Any) -> nn.Module:
    """transformers' D-FINE-N, of the real size."""
    backbone = transformers.HGNetV2Config(**B0, out_indices=[3, 4])
    config = transformers.DFineConfig(
        backbone_config=backbone,
        **{
            "encoder_hidden_dim": 128, "encoder_ffn_dim": 512, "hidden_expansion": 0.34, "depth_mult": 0.5,
            "encoder_in_channels": [512, 1024], "feat_strides": [16, 32], "encode_proj_layers": [1],
            "d_model": 128, "decoder_ffn_dim": 512, "decoder_layers": 3, "decoder_n_points": [6, 6],
            "decoder_in_channels": [128, 128], "num_feature_levels": 2, "num_queries": QUERIES,
            "num_labels": CLASSES, **settings,
        },
    )  # fmt: skip
    return transformers.DFineForObjectDetection(config)  # type: ignore[no-any-return]


def dfine_three_maps() -> nn.Module:
    """A D-FINE with the three maps and the points of S, and a decoder that is narrower than the encoder."""
    backbone = transformers.HGNetV2Config(**B0, out_indices=[2, 3, 4])
    config = transformers.DFineConfig(
        backbone_config=backbone, encoder_in_channels=[256, 512, 1024], depth_mult=0.34,
        **SMALL_RTDETR | {"encoder_hidden_dim": 96}, num_queries=QUERIES, num_labels=CLASSES,
        decoder_n_points=[3, 6, 3], freeze_backbone_batch_norms=False,
    )  # fmt: skip
    config.decoder_in_channels = [96, 96, 96]
    return transformers.DFineForObjectDetection(config)  # type: ignore[no-any-return]


def rtdetr(version: str, backbone: dict[str, Any]) -> nn.Module:
    """A small RT-DETR or RT-DETRv2 on a ResNet-vd of the real size."""
    config = getattr(transformers, f"{version}Config")(
        backbone_config=transformers.RTDetrResNetConfig(**backbone, out_indices=[2, 3, 4]),
        **SMALL_RTDETR,
        num_queries=QUERIES,
        num_labels=CLASSES,
    )
    return getattr(transformers, f"{version}ForObjectDetection")(config)  # type: ignore[no-any-return]


@torch.no_grad()
def unsettle(model: nn.Module) -> nn.Module:
    """Draw weights that leave no tensor without effect: norms with statistics, heads that are not constant."""
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("running_var", "lab.scale")) or (name.endswith("weight") and tensor.ndim == 1):
            uniform(tensor, 0.5, 1.5)
        elif name.endswith(("bias", "running_mean")):
            uniform(tensor, -0.2, 0.2)
        elif tensor.ndim > 1:
            bound = (5 / tensor[0].numel()) ** 0.5  # the heads tell queries apart, and rounding is not amplified
            uniform(tensor, -bound, bound)
    return model.eval()


def ours_from(theirs: nn.Module, directory: Path, name: str, **options: Any) -> Detector:
    theirs.save_pretrained(directory)  # type: ignore[operator]
    model = detectors.build(name, num_classes=CLASSES, num_queries=QUERIES, **options)
    load_reference_checkpoint(model, directory)
    return model.eval()


def sorted_by_score(logits: Tensor, boxes: Tensor) -> Tensor:
    """Bring the queries, whose order tells nothing, into one."""
    everything = torch.cat([logits, boxes], dim=-1)[0]
    return everything[everything[:, 0].argsort()]


@torch.no_grad()
def assert_agree(theirs: nn.Module, ours: Detector, sizes: list[tuple[int, int]]) -> None:
    for size in sizes:
        images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
        expected, got = theirs(images), ours(images)
        reference = sorted_by_score(expected.logits, expected.pred_boxes)
        assert reference.std(dim=0).min() > 1e-3  # constant outputs would agree however wrong
        torch.testing.assert_close(sorted_by_score(got["pred_logits"], got["pred_boxes"]), reference, atol=1e-4, rtol=0)


# On non-square images transformers numbers the cells of its positions otherwise than the authors (and we) do.
SIZES = [(128, 128), (192, 192)]


def test_dfine_n(tmp_path: Path) -> None:
    theirs = unsettle(dfine_n())
    assert_agree(theirs, ours_from(theirs, tmp_path, "dfine_n"), SIZES)


def test_dfine_with_three_maps(tmp_path: Path) -> None:
    theirs = unsettle(dfine_three_maps())
    options = {**SMALL, "encoder_dim": 96, "encoder_depth": 0.34}
    assert_agree(theirs, ours_from(theirs, tmp_path, "dfine_s", **options), SIZES[:1])


@pytest.mark.parametrize(
    ("version", "backbone", "name"),
    [
        ("RTDetr", R18, "rtdetr_r18"),
        ("RTDetr", R50, "rtdetr_r50"),
        ("RTDetrV2", R18, "rtdetrv2_r18"),
        ("RTDetrV2", R50, "rtdetrv2_r50"),
    ],
)
def test_rtdetr(version: str, backbone: dict[str, Any], name: str, tmp_path: Path) -> None:
    theirs = unsettle(rtdetr(version, backbone))
    assert_agree(theirs, ours_from(theirs, tmp_path, name, **SMALL), SIZES[:1])


def test_shards(tmp_path: Path) -> None:
    theirs = unsettle(rtdetr("RTDetrV2", R18))
    theirs.save_pretrained(tmp_path, max_shard_size="20MB")  # type: ignore[operator]
    assert not (tmp_path / "model.safetensors").exists()
    ours = detectors.build("rtdetrv2_r18", num_classes=CLASSES, num_queries=QUERIES, **SMALL)
    report = load_reference_checkpoint(ours, tmp_path)
    assert set(report.loaded) | set(report.kept) == set(ours.state_dict())
    assert_agree(theirs, ours.eval(), SIZES[:1])

    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(WeightsError, match="does not exist"):
        load_reference_checkpoint(ours, tmp_path)


def test_names_of_the_modules(tmp_path: Path) -> None:
    """state_dict() spells some names otherwise than save_pretrained, and holds the heads twice."""
    theirs = unsettle(dfine_n(decoder_layers=2))
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    assert {"class_embed.0.bias", "model.decoder.class_embed.0.bias"} <= state.keys()
    save_file(state, tmp_path / "model.safetensors")
    ours = detectors.build("dfine_n", num_classes=CLASSES, num_queries=QUERIES, decoder_layers=2)
    load_reference_checkpoint(ours, tmp_path)
    assert_agree(theirs, ours.eval(), SIZES[:1])

    state["class_embed.0.bias"] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"class_embed\.0\.bias twice"):
        load_reference_checkpoint(ours, tmp_path)


def test_classes_by_name(tmp_path: Path) -> None:
    names = ["cat", "sofa", "dog"]
    theirs = unsettle(dfine_n(decoder_layers=2, id2label=dict(enumerate(names)), num_labels=3))
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    ours = detectors.build("dfine_n", class_names=["dog", "couch", "cat"], decoder_layers=2)
    report = load_reference_checkpoint(ours, tmp_path)
    assert (report.classes.kept, report.classes.new, report.classes.dropped) == (("dog", "cat"), ("couch",), ("sofa",))
    head = theirs.get_submodule("model.decoder.class_embed.0").get_parameter("bias")
    assert torch.equal(ours.get_parameter("decoder.stages.0.score_head.bias")[[0, 2]], head[[2, 0]])

    unnamed = detectors.build("dfine_n", num_classes=3, decoder_layers=2)
    load_reference_checkpoint(unnamed, tmp_path)
    assert (unnamed.class_names, unnamed.category_ids) == (names, None)


def test_another_size_is_refused_by_its_config(tmp_path: Path) -> None:
    unsettle(dfine_n(decoder_layers=2)).save_pretrained(tmp_path)  # type: ignore[operator]
    ours = detectors.build("dfine_n", num_classes=CLASSES)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(WeightsError, match=r"decoder_layers=3: build the detector with decoder_layers=2, "):
        load_reference_checkpoint(ours, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
