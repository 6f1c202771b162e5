from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import detectors
from detectors.checkpoints import load_reference_checkpoint
from detectors.coco_names import COCO_IDS, COCO_NAMES
from detectors.detector import Detector
from detectors.key_maps import reference_key
from vfmdistill.errors import WeightsError

OPTIONS: dict[str, Any] = {"decoder_layers": 2, "num_denoising": 5}


def build(**options: Any) -> Detector:
    return detectors.build("deim_n", **{"num_classes": 4, **OPTIONS, **options})


def published() -> dict[str, Tensor]:
    """Return random weights as the authors would have saved them, with everything that ours does not need."""
    generator = torch.Generator().manual_seed(0)
    state = {
        reference_key(key): torch.rand(value.shape, generator=generator).to(value.dtype)
        for key, value in build().state_dict().items()
    }
    return {
        **state,
        "encoder.feature_projector.0.weight": torch.zeros(768, 128),
        "encoder.feature_projector.0.bias": torch.zeros(768),
        "decoder.anchors": torch.full((1, 2000, 4), torch.inf),
        "decoder.valid_mask": torch.ones(1, 2000, 1, dtype=torch.bool),
        "decoder.decoder.up": state["decoder.up"],
        "decoder.decoder.reg_scale": state["decoder.reg_scale"],
        "decoder.decoder.layers.0.cross_attn.num_points_scale": torch.ones(12),
    }


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [  # read off state dicts of the authors' models, RT-DETRv4 commit df44122
        ("backbone.stem.stem1.conv.weight", "backbone.stem.stem1.conv.weight"),
        ("backbone.stages_2.blocks.0.layers.0.conv1.bn.bias", "backbone.stages.2.blocks.0.layers.0.conv1.bn.bias"),
        ("encoder.input_projections.0.norm.weight", "encoder.input_proj.0.norm.weight"),
        ("encoder.aifi.layers.0.attention.in_proj_weight", "encoder.encoder.0.layers.0.self_attn.in_proj_weight"),
        ("encoder.aifi.layers.0.feedforward.2.bias", "encoder.encoder.0.layers.0.linear2.bias"),
        ("encoder.aifi.layers.0.norm2.weight", "encoder.encoder.0.layers.0.norm2.weight"),
        ("encoder.laterals.1.conv.weight", "encoder.lateral_convs.1.conv.weight"),
        ("encoder.downsamples.0.1.norm.running_var", "encoder.downsample_convs.0.0.cv2.norm.running_var"),
        ("encoder.top_down.1.enter.conv.weight", "encoder.fpn_blocks.1.cv1.conv.weight"),
        ("encoder.bottom_up.0.join.norm.bias", "encoder.pan_blocks.0.cv4.norm.bias"),
        (
            "encoder.bottom_up.0.second.0.blocks.1.conv1x1.conv.weight",
            "encoder.pan_blocks.0.cv3.0.bottlenecks.1.conv2.conv.weight",
        ),
        ("encoder.top_down.0.first.0.shortcut.norm.weight", "encoder.fpn_blocks.0.cv2.0.conv2.norm.weight"),
        ("encoder.top_down.0.first.1.conv.weight", "encoder.fpn_blocks.0.cv2.1.conv.weight"),
        ("encoder.top_down.0.blocks.2.conv3x3.conv.weight", "encoder.fpn_blocks.0.bottlenecks.2.conv1.conv.weight"),
        ("encoder.top_down.0.leave.conv.weight", "encoder.fpn_blocks.0.conv3.conv.weight"),
        ("encoder.downsamples.1.conv.weight", "encoder.downsample_convs.1.conv.weight"),
        ("decoder.input_projections.2.conv.weight", "decoder.input_proj.2.conv.weight"),
        ("decoder.selection.projection.weight", "decoder.enc_output.proj.weight"),
        ("decoder.selection.norm.bias", "decoder.enc_output.norm.bias"),
        ("decoder.selection.box_head.layers.1.bias", "decoder.enc_bbox_head.layers.1.bias"),
        ("decoder.denoising_embedding.weight", "decoder.denoising_class_embed.weight"),
        ("decoder.position_head.layers.0.weight", "decoder.query_pos_head.layers.0.weight"),
        ("decoder.first_box_head.layers.2.bias", "decoder.pre_bbox_head.layers.2.bias"),
        ("decoder.stages.1.score_head.bias", "decoder.dec_score_head.1.bias"),
        ("decoder.stages.1.corner_head.layers.0.weight", "decoder.dec_bbox_head.1.layers.0.weight"),
        (
            "decoder.stages.2.quality.perceptron.layers.1.bias",
            "decoder.decoder.lqe_layers.2.reg_conf.layers.1.bias",
        ),
        ("decoder.stages.0.layer.norm1.weight", "decoder.decoder.layers.0.norm1.weight"),
        ("decoder.stages.0.layer.norm2.weight", "decoder.decoder.layers.0.norm3.weight"),
        ("decoder.stages.0.layer.merge.linear.weight", "decoder.decoder.layers.0.gateway.gate.weight"),
        ("decoder.stages.0.layer.merge.norm.weight", "decoder.decoder.layers.0.gateway.norm.weight"),
        ("decoder.stages.0.layer.sampling.offsets.bias", "decoder.decoder.layers.0.cross_attn.sampling_offsets.bias"),
        ("decoder.stages.0.layer.sampling.weights.bias", "decoder.decoder.layers.0.cross_attn.attention_weights.bias"),
        ("decoder.stages.0.layer.feedforward.0.weight", "decoder.decoder.layers.0.linear1.weight"),
        ("decoder.reg_scale", "decoder.reg_scale"),
        # ResNet-vd and RT-DETR's decoder
        ("backbone.conv1.0.weight", "backbone.conv1.conv1_1.conv.weight"),
        ("backbone.conv1.4.running_mean", "backbone.conv1.conv1_2.norm.running_mean"),
        ("backbone.conv1.6.weight", "backbone.conv1.conv1_3.conv.weight"),
        ("backbone.bn1.bias", "backbone.conv1.conv1_3.norm.bias"),
        ("backbone.layer1.0.downsample.1.weight", "backbone.res_layers.0.blocks.0.short.conv.weight"),
        ("backbone.layer1.0.downsample.2.weight", "backbone.res_layers.0.blocks.0.short.norm.weight"),
        ("backbone.layer4.0.downsample.1.weight", "backbone.res_layers.3.blocks.0.short.conv.conv.weight"),
        ("backbone.layer2.0.downsample.2.bias", "backbone.res_layers.1.blocks.0.short.conv.norm.bias"),
        ("backbone.layer3.22.conv3.weight", "backbone.res_layers.2.blocks.22.branch2c.conv.weight"),
        ("backbone.layer3.1.bn1.running_var", "backbone.res_layers.2.blocks.1.branch2a.norm.running_var"),
        ("encoder.bottom_up.1.main.conv.weight", "encoder.pan_blocks.1.conv1.conv.weight"),
        ("encoder.top_down.0.leave.norm.bias", "encoder.fpn_blocks.0.conv3.norm.bias"),
        ("decoder.stages.5.box_head.layers.2.weight", "decoder.dec_bbox_head.5.layers.2.weight"),
        ("decoder.stages.2.layer.merge.weight", "decoder.decoder.layers.2.norm2.weight"),
        ("decoder.stages.2.layer.norm2.bias", "decoder.decoder.layers.2.norm3.bias"),
        (
            "decoder.stages.1.layer.sampling.value_projection.bias",
            "decoder.decoder.layers.1.cross_attn.value_proj.bias",
        ),
        (
            "decoder.stages.1.layer.sampling.output_projection.weight",
            "decoder.decoder.layers.1.cross_attn.output_proj.weight",
        ),
    ],
)
def test_names(ours: str, theirs: str) -> None:
    assert reference_key(ours) == theirs


@pytest.mark.parametrize("name", ["rtdetrv4_s", "dfine_x", "rtdetr_r18", "deim_rtdetrv2_r50"])
def test_no_two_tensors_share_a_name(name: str) -> None:
    with torch.device("meta"):
        keys = detectors.build(name, num_classes=80).state_dict().keys()
    assert len({reference_key(key) for key in keys}) == len(keys)


def test_every_tensor_is_filled() -> None:
    model, state = build(), published()
    report = load_reference_checkpoint(model, state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[reference_key(key)]), key
    assert set(report.loaded) == set(model.state_dict())
    assert report.kept == ()
    assert set(report.ignored) == state.keys() - {reference_key(key) for key in model.state_dict()}
    assert "injector" in report.ignored["encoder.feature_projector.0.weight"]


@pytest.mark.parametrize("form", ["ema", "model", "bare", "safetensors"])
def test_files(tmp_path: Path, form: str) -> None:
    """The averaged weights are preferred where there are any."""
    state = published()
    worse = {key: torch.zeros_like(value) for key, value in state.items()}
    path = tmp_path / "published.pth"
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({key: value.clone() for key, value in state.items()}, path)
    else:
        contents = {
            "ema": {"model": worse, "ema": {"module": state, "updates": 3}, "last_epoch": 131},
            "model": {"model": state, "last_epoch": 131},
            "bare": state,
        }
        torch.save(contents[form], path)
    model = build()
    load_reference_checkpoint(model, path)
    assert torch.equal(model.decoder.selection.score_head.bias, state["decoder.enc_score_head.bias"])


def test_step_counters_may_be_missing() -> None:
    """Norms that were frozen in the authors' training have none."""
    state = {key: value for key, value in published().items() if not key.endswith("num_batches_tracked")}
    model = build()
    report = load_reference_checkpoint(model, state)
    assert report.kept
    assert all(key.endswith("num_batches_tracked") for key in report.kept)


def test_the_embedding_is_not_needed_without_denoising() -> None:
    report = load_reference_checkpoint(build(num_denoising=0), published())
    assert "without denoising" in report.ignored["decoder.denoising_class_embed.weight"]


def test_weights_trained_without_denoising_start_a_training_with_it() -> None:
    state = published()
    del state["decoder.denoising_class_embed.weight"]
    model = build()
    before = model.decoder.denoising_embedding.weight.clone()
    report = load_reference_checkpoint(model, state)
    assert report.kept == ("decoder.denoising_embedding.weight",)
    assert "embedding of denoising queries is new" in str(report)
    assert torch.equal(model.decoder.denoising_embedding.weight, before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapped_models_put_a_prefix_before_every_name(prefix: str) -> None:
    state = {prefix + key: value for key, value in published().items()}
    model = build()
    load_reference_checkpoint(model, {"model_state_dict": state})
    assert torch.equal(model.decoder.selection.score_head.bias, published()["decoder.enc_score_head.bias"])


def test_weights_do_not_go_into_a_deployed_detector() -> None:
    assert_refused(detectors.deploy(build()), published(), r"Load it before detectors\.deploy")


@pytest.mark.parametrize("source", [None, torch.nn.Linear(1, 1), b"weights"])
def test_other_sources_are_refused(source: Any) -> None:
    assert_refused(build(), source, "from a file, a folder or a state dict; got ")


def assert_refused(model: Detector, state: Any, message: str, **options: Any) -> None:
    """The error says what is wrong, and no tensor has changed."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_reference_checkpoint(model, state, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_missing_and_left_over_tensors_are_named() -> None:
    state = published()
    state["decoder.tgt_embed.weight"] = state.pop("decoder.enc_score_head.weight")
    assert_refused(
        build(),
        state,
        r"'deim_n': 1 tensors are missing .*enc_score_head.weight.*1 are left over .*tgt_embed.weight",
    )


def test_another_size_is_refused() -> None:
    assert_refused(build(decoder_layers=3), published(), r"tensors are missing .*layers\.2\.")
    assert_refused(build(decoder_feedforward=64), published(), r"linear1.weight \(512, 128\) instead of \(64, 128\)")


def test_contents_without_state_dict_are_refused() -> None:
    assert_refused(build(), {"last_epoch": 3}, r"no state dict .*got \['last_epoch'\]")


def test_parts_of_contradicting_sizes_are_refused() -> None:
    state = published() | {"decoder.dec_score_head.1.bias": torch.zeros(7)}
    assert_refused(
        build(), state, r"scores 4 classes, but the tensor for decoder\.stages\.1\.score_head\.bias has 7 rows"
    )


def test_the_spelling_of_the_first_rtdetr() -> None:
    """Keys as in rtdetr_pytorch of lyuwenyu/RT-DETR, which numbers the parts of two sequences."""
    options: dict[str, Any] = {"num_classes": 4, "decoder_layers": 2, "num_denoising": 5}
    later = {
        reference_key(key): torch.rand(value.shape).to(value.dtype)
        for key, value in detectors.build("rtdetr_r18", **options).state_dict().items()
    }
    renamed = {"encoder.input_proj.0.conv.weight": "encoder.input_proj.0.0.weight",
               "encoder.input_proj.2.norm.running_var": "encoder.input_proj.2.1.running_var",
               "decoder.enc_output.proj.weight": "decoder.enc_output.0.weight",
               "decoder.enc_output.norm.bias": "decoder.enc_output.1.bias"}  # fmt: skip
    first = {renamed.get(key, key): value for key, value in later.items()}
    assert len(renamed.keys() & later.keys()) == len(first.keys() & set(renamed.values())) == 4
    model, same = detectors.build("rtdetr_r18", **options), detectors.build("rtdetr_r18", **options)
    load_reference_checkpoint(model, first)
    load_reference_checkpoint(same, later)
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.get_parameter("decoder.selection.norm.bias"), later["decoder.enc_output.norm.bias"])


def test_names_of_ours() -> None:
    trained, model = build(), build()
    report = load_reference_checkpoint(model, trained.state_dict())
    assert set(report.loaded) == set(trained.state_dict())
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in model.state_dict().items())


def coco(**options: Any) -> dict[str, Tensor]:
    """Weights with 80 classes under the authors' names."""
    return {reference_key(key): value for key, value in build(num_classes=80, **options).state_dict().items()}


def test_eighty_classes_are_those_of_coco() -> None:
    """The rows of dog (16) and person (0), in every tensor that has such rows; the padding row comes along."""
    state = coco()
    state["decoder.denoising_class_embed.weight"][80] = 7.0
    model = detectors.build("deim_n", class_names=["raccoon", "dog", "person"], **OPTIONS)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_reference_checkpoint(model, state)
    rows = [key for key in before if "score_head" in key or "denoising_embedding" in key]
    assert len(rows) == 7
    for key, value in model.state_dict().items():
        given = state[reference_key(key)]
        if key in rows:
            assert torch.equal(value[0], before[key][0]), key
            assert torch.equal(value[1:3], given[[16, 0]]), key
            assert len(value) == 3 or torch.equal(value[3], given[80])
        else:
            assert torch.equal(value, given), key
    assert report.classes.kept == ("dog", "person")
    assert report.classes.new == ("raccoon",)
    assert len(report.classes.dropped) == 78
    assert (model.class_names, model.category_ids) == (["raccoon", "dog", "person"], None)
    assert "2 kept: dog, person; 1 new: raccoon; 78 dropped: bicycle, car" in str(report)


def test_the_names_are_taken_over_where_the_detector_has_none() -> None:
    model = build(num_classes=80)
    report = load_reference_checkpoint(model, coco())
    assert report.classes.in_order
    assert model.class_names == list(COCO_NAMES)
    assert model.category_ids == list(COCO_IDS)
    named = detectors.build("deim_n", class_names=COCO_NAMES, **OPTIONS)
    load_reference_checkpoint(named, coco())
    assert named.category_ids == list(COCO_IDS)
    renamed = build(num_classes=80)
    load_reference_checkpoint(renamed, coco(), source_class_names=[f"thing {index}" for index in range(80)])
    assert renamed.category_ids is None  # other classes, of which the ids are not known
    few = build()
    load_reference_checkpoint(few, published())
    assert few.class_names is None


def test_source_class_names_overrule() -> None:
    names = [f"thing {index}" for index in range(80)]
    model = detectors.build("deim_n", class_names=["dog", "thing 3"], **OPTIONS)
    report = load_reference_checkpoint(model, coco(), source_class_names=names)
    assert (report.classes.kept, report.classes.new) == (("thing 3",), ("dog",))
    unnamed = build()
    load_reference_checkpoint(unnamed, published(), source_class_names=["a", "b", "c", "d"])
    assert (unnamed.class_names, unnamed.category_ids) == (["a", "b", "c", "d"], None)
    assert_refused(build(num_classes=80), {**coco()}, "3 source_class_names for a", source_class_names=["a", "b", "c"])


def test_another_number_of_classes_asks_for_names() -> None:
    assert_refused(
        build(num_classes=6), published(), "knows 4 classes, the detector 6.*source_class_names=.*num_classes=4"
    )
    assert_refused(
        build(), coco(), r"knows 80 classes, the detector 4.*unknown: the detector's \(build it with class_names"
    )


def test_other_names_of_as_many_classes() -> None:
    """Equal counts do not mean equal classes where the names are known."""
    model = detectors.build("deim_n", class_names=["d", "x", "b", "a"], **OPTIONS)
    before = model.get_parameter("decoder.selection.score_head.weight").detach().clone()
    state = published()
    load_reference_checkpoint(model, state, source_class_names=["a", "b", "c", "d"])
    after, given = model.get_parameter("decoder.selection.score_head.weight"), state["decoder.enc_score_head.weight"]
    assert torch.equal(after, torch.stack([given[3], before[1], given[1], given[0]]))


def test_published_weights_carry_no_licence() -> None:
    model = build()
    model.license = "of other weights"
    load_reference_checkpoint(model, published())
    assert model.license is None


def test_the_report_in_words() -> None:
    state = {key: value for key, value in published().items() if not key.endswith("num_batches_tracked")}
    lines = str(load_reference_checkpoint(build(), state)).splitlines()
    assert re.fullmatch(r"\d+ tensors filled", lines[0])
    assert lines[1] == "classes: all 4 rows are kept in their order"
    assert "2 tensors left aside: belongs to the semantic injector, not to the student" in lines
    assert re.fullmatch(r"\d+ step counters of batch norms kept: the checkpoint has none", lines[-1])


class Malicious:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code has run",)


def test_files_with_code_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": Malicious()}, tmp_path / "evil.pth")
    assert_refused(build(), tmp_path / "evil.pth", "evil.pth.*weights_only=True")
    assert "code has run" not in capsys.readouterr().out


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    assert_refused(build(), tmp_path, r"no file .*config\.json")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert_refused(build(), tmp_path, "model_type 'bert'")
    assert_refused(build(), tmp_path / "absent.pth", "'.*absent.pth' does not exist")
