from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detectors.catalog import detector_spec
from detectors.transformers_config import TransformersConfig, read_transformers_config
from vfmdistill.errors import WeightsError

# As in the config.json of ustc-community's and PekingU's checkpoints: what is left out has transformers' default.
DFINE_S: dict[str, Any] = {
    "model_type": "d_fine",
    "backbone_config": {"model_type": "hgnet_v2", "out_indices": [2, 3, 4], "use_learnable_affine_block": True},
    "hidden_expansion": 0.5,
    "depth_mult": 0.34,
    "decoder_layers": 3,
    "decoder_n_points": [3, 6, 3],
}
R50: dict[str, Any] = {
    "model_type": "rt_detr",
    "backbone_config": {"model_type": "rt_detr_resnet", "out_features": ["stage2", "stage3", "stage4"]},
}
R101: dict[str, Any] = {**R50, "model_type": "rt_detr_v2", "encoder_hidden_dim": 384, "encoder_ffn_dim": 2048}


@pytest.mark.parametrize(
    ("content", "name"), [(DFINE_S, "dfine_s"), (R50, "rtdetr_r50"), (R101, "rtdetrv2_r101"), (R50, "rtdetrv2_r50")]
)
def test_published_settings_fit_ours(content: dict[str, Any], name: str) -> None:
    config, spec = TransformersConfig.model_validate(content), detector_spec(name)
    config.check(spec, Path("folder"))  # raises where they differ
    options = config.options()
    assert len(options) >= 17
    assert {field: getattr(spec, field) for field in options} == options


@pytest.mark.parametrize(
    ("content", "change", "message"),
    [
        (DFINE_S, {"hidden_expansion": 1.0}, r"encoder_expansion=0.5: build the detector with encoder_expansion=1.0"),
        (DFINE_S, {"decoder_n_points": 4}, r"decoder_points=\(4, 4, 4\)"),
        (DFINE_S, {"depth_mult": 1.0, "reg_scale": 8.0}, r"with encoder_depth=1.0, reg_scale=8.0"),
        (DFINE_S, {"eval_idx": 1}, "decoder_eval_index=1"),
        (DFINE_S, {"decoder_activation_function": "silu"}, "activation='silu'"),
        (DFINE_S, {"backbone_config": {"model_type": "hgnet_v2", "out_indices": [3, 4]}}, r"backbone_stages=\(2, 3\)"),
        (DFINE_S, {"backbone_config": None}, "backbone of type None"),
        (R50, {"backbone_config": {"model_type": "resnet", "out_indices": [2, 3, 4]}}, "backbone of type 'resnet'"),
        (R50, {"backbone_config": {**R50["backbone_config"], "downsample_in_bottleneck": True}}, "downsample_in_bott"),
        (R50, {"eval_size": [640, 640]}, r"computes something else than .*eval_size=\[640, 640\]"),
        (R50, {"decoder_method": "discrete"}, r"decoder_method='discrete' \(only 'default'\)"),
        (R50, {"encode_proj_layers": [1, 2]}, r"encode_proj_layers=\(1, 2\) \(only the last map\)"),
        (R50, {"normalize_before": True, "layer_norm_eps": 1e-6}, "normalize_before=True.*layer_norm_eps=1e-06"),
    ],
)
def test_differences_are_named(content: dict[str, Any], change: dict[str, Any], message: str) -> None:
    config = TransformersConfig.model_validate({**content, **change})
    with pytest.raises(WeightsError, match=message):
        config.check(detector_spec("dfine_s" if content is DFINE_S else "rtdetr_r50"), Path("folder"))


def test_another_family_is_named() -> None:
    with pytest.raises(WeightsError, match="rt_detr in folder is not built like 'dfine_s' with decoder='dfine'"):
        TransformersConfig.model_validate(R50).check(detector_spec("dfine_s"), Path("folder"))


def test_the_deeper_layers_are_answered_with() -> None:
    """transformers knows no RT-DETR that answers with an earlier layer, as ours with the scaled R50 does."""
    config = TransformersConfig.model_validate({**R50, "hidden_expansion": 0.5})
    with pytest.raises(WeightsError, match="with decoder_eval_index=2: build the detector with decoder_eval_index=-1"):
        config.check(detector_spec("rtdetr_r50_m"), Path("folder"))
    config.check(detector_spec("rtdetr_r50_m").replace(decoder_eval_index=-1), Path("folder"))
    config.check(detector_spec("rtdetr_r50_m").replace(decoder_eval_index=5), Path("folder"))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"1": "dog", "0": "cat"}, ["cat", "dog"]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None),
        ({"0": "cat", "2": "dog"}, None),
        (None, None),
    ],
)
def test_class_names(labels: dict[str, str] | None, names: list[str] | None) -> None:
    assert TransformersConfig.model_validate({**R50, "id2label": labels}).class_names == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "detr"}', r"model_type 'detr'; of transformers' models d_fine, rt_detr, rt_detr_v2 are read"),
        ('{"hidden": 3}', "model_type None"),
        ("{", "is damaged"),
        ("[]", "holds a list"),
        (json.dumps({**R50, "d_model": "wide"}), "is damaged: d_model"),
    ],
)
def test_unreadable_configs(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_transformers_config(tmp_path)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file .*config\.json"):
        read_transformers_config(tmp_path)
