from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

import detectors
from detectors.catalog import CATALOG, DetectorSpec, detector_spec, list_models
from vfmdistill.errors import InputError, UnknownNameError

# Measured on the authors' code (RT-DETRv4 commit df44122; rtdetr_*: lyuwenyu/RT-DETR) with 80 classes: parameters of
# backbone, encoder and decoder; GFLOPs of one image of 640 × 640 by torch's FLOP counter.
N, S, M, L, X, L_FROZEN, X_FROZEN, R18, R34, R50_M, R50, R101 = (
    ((1_850_396, 703_824, 1_228_473), 7.33),
    ((1_850_396, 4_021_504, 4_449_977), 25.67),
    ((6_026_626, 7_799_040, 5_764_398), 58.36),
    ((13_553_376, 9_343_232, 8_393_240), 93.58),
    ((33_325_760, 20_700_032, 8_689_688), 207.51),
    ((13_507_680, 9_343_232, 8_393_240), 93.58),
    ((33_231_840, 20_700_032, 8_689_688), 207.51),
    ((11_199_968, 4_965_120, 4_019_376), 61.49),
    ((21_308_128, 4_965_120, 5_168_420), 93.59),
    ((23_474_016, 5_653_248, 7_466_508), 100.60),
    ((23_474_016, 11_950_848, 7_466_508), 137.78),
    ((42_413_920, 26_577_536, 7_564_812), 260.57),
)
AUTHORS: dict[str, tuple[tuple[int, int, int], float]] = {
    "rtdetrv4_n": N, "rtdetrv4_s": S, "rtdetrv4_m": M, "rtdetrv4_l": L, "rtdetrv4_x": X,
    "deim_n": N, "deim_s": S, "deim_m": M, "deim_l": L, "deim_x": X,
    "dfine_n": N, "dfine_s": S, "dfine_m": M, "dfine_l": L_FROZEN, "dfine_x": X_FROZEN,
    "rtdetrv2_r18": R18, "rtdetrv2_r34": R34, "rtdetrv2_r50_m": R50_M, "rtdetrv2_r50": R50, "rtdetrv2_r101": R101,
    "rtdetr_r18": R18, "rtdetr_r34": R34, "rtdetr_r50_m": R50_M, "rtdetr_r50": R50, "rtdetr_r101": R101,
    "deim_rtdetrv2_r18": ((11_199_968, 4_965_120, 4_018_352), 61.49),
    "deim_rtdetrv2_r34": ((21_308_128, 4_965_120, 5_167_396), 93.59),
    "deim_rtdetrv2_r50_m": ((23_527_264, 5_653_248, 4_018_352), 100.60),
    "deim_rtdetrv2_r50": ((23_527_264, 11_950_848, 7_465_484), 137.78),
    "deim_rtdetrv2_r101": ((42_519_392, 26_577_536, 7_563_788), 260.57),
}  # fmt: skip
TOTALS = {
    "rtdetrv4_s": 10_321_877, "rtdetrv4_m": 19_590_064, "rtdetrv4_l": 31_289_848, "rtdetrv4_x": 62_715_480,
    "deim_n": 3_782_693, "dfine_l": 31_244_152, "dfine_x": 62_621_560, "rtdetr_r18": 20_184_464,
    "rtdetrv2_r34": 31_441_668, "rtdetrv2_r50_m": 36_593_772, "rtdetrv2_r50": 42_891_372, "rtdetr_r101": 76_556_268,
    "deim_rtdetrv2_r18": 20_183_440, "deim_rtdetrv2_r50_m": 33_198_864, "deim_rtdetrv2_r101": 76_660_716,
}  # fmt: skip


@pytest.mark.parametrize("name", CATALOG)
def test_size(name: str) -> None:
    """As many parameters as the authors' model, and no more operations: ours scores every cell, but boxes few."""
    with torch.device("meta"):
        model = detectors.build(name, num_classes=80).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 640, 640))
    parameters, gflops = AUTHORS[name]
    parts = (model.backbone, model.encoder, model.decoder)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == parameters
    assert sum(parameters) == TOTALS.get(name, sum(parameters))
    fewer = 2.14 if model.spec.decoder == "rtdetr" else 0.0  # the authors' RT-DETR runs its box head on every cell
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops - fewer, abs=0.016)
    assert counter.get_total_flops() / 1e9 <= 1.001 * gflops


def test_list_of_models() -> None:
    assert list_models() == list(AUTHORS)
    assert list_models("*_n") == ["rtdetrv4_n", "deim_n", "dfine_n"]
    assert list_models("rtdetr_*") == ["rtdetr_r18", "rtdetr_r34", "rtdetr_r50_m", "rtdetr_r50", "rtdetr_r101"]
    assert len(list_models("rtdetr*")) == 15
    assert list_models("nothing") == []


@pytest.mark.parametrize(
    ("family", "activation", "classification", "gamma", "alpha"),
    [
        ("rtdetrv4", "silu", "mal", 1.5, None),
        ("deim", "silu", "mal", 1.5, None),
        ("dfine", "relu", "vfl", 2.0, 0.75),
        ("deim_rtdetrv2", "silu", "mal", 1.5, None),
        ("rtdetrv2", "relu", "vfl", 2.0, 0.75),
        ("rtdetr", "relu", "vfl", 2.0, 0.75),
    ],
)
def test_families(family: str, activation: str, classification: str, gamma: float, alpha: float | None) -> None:
    """The authors' configurations."""
    specs = [spec for spec in CATALOG.values() if spec.family == family]
    assert len(specs) == 5
    for spec in specs:
        assert spec.name.startswith(f"{family}_")
        assert (spec.activation, spec.classification) == (activation, classification)
        assert (spec.gamma, spec.alpha) == (gamma, alpha)
        assert (spec.num_queries, spec.num_denoising, spec.label_noise, spec.box_noise) == (300, 100, 0.5, 1.0)
        assert (spec.reg_max, spec.reg_scale) == (32, 8.0 if spec.name.endswith("_x") else 4.0)
        assert spec.input_size == (640, 640)
        edges = spec.decoder == "dfine"
        assert edges == (family in ("rtdetrv4", "deim", "dfine"))
        assert (spec.union_matching, spec.encoder_fusion) == (edges, "elan" if edges else "csp")
        assert spec.denoising_flip == (family != "rtdetr")


def test_a_new_size_is_one_row() -> None:
    """A network nobody has published: ResNet-50-vd under D-FINE's encoder and a narrow RT-DETR decoder."""
    row = detector_spec("deim_rtdetrv2_r50").replace(
        input_size=(128, 192), encoder_fusion="elan", encoder_dim=96, encoder_depth=0.67, encoder_feedforward=160,
        backbone_stages=(2, 3), decoder_dim=64, decoder_heads=4, decoder_layers=2, decoder_points=(5, 2),
        num_queries=24,
    )  # fmt: skip
    changes = {name: value for name, value in row if name not in ("name", "family")}
    model = detectors.build("deim_rtdetrv2_r50", class_names=["a", "b"], **changes)
    assert model.spec == row
    images, targets = torch.rand(1, 3, 128, 192), [{"labels": torch.ones(1).long(), "boxes": torch.full((1, 4), 0.5)}]
    outputs = model(images, targets)
    assert outputs["pred_logits"].shape == (1, 24, 2)
    loss = torch.stack(list(detectors.build_criterion(model.spec, 2)(outputs, targets).values())).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'rtdetrv4s'; nearest: rtdetrv4_s.*list_models"):
        detector_spec("rtdetrv4s")


def test_replace_changes_a_copy() -> None:
    spec = detector_spec("rtdetrv4_s")
    assert spec.replace(num_queries=100).num_queries == 100
    assert spec.replace() == spec
    assert spec.num_queries == 300


def test_replace_refuses_unknown_fields() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown model option 'num_querys'; nearest: num_queries.*All of them: "
    ):
        detector_spec("rtdetrv4_s").replace(num_querys=100)
    with pytest.raises(UnknownNameError, match="model option 'name'"):
        detector_spec("rtdetrv4_s").replace(name="mine")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_queries": 0},
        {"num_denoising": -1},
        {"activation": "tanh"},
        {"decoder_points": (3, 3)},
        {"decoder_eval_index": 3},
        {"decoder_dim": 100},
        {"reg_max": 5},
        {"backbone_stages": (3, 2, 1)},
        {"backbone_stages": (0, 1, 3)},
        {"decoder_points": (3, 0, 3)},
        {"decoder_position_widths": (0,)},
        {"input_size": (640, 650)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_replace_refuses_values_that_do_not_fit(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        detector_spec("rtdetrv4_s").replace(**changes)


def test_specs_are_constants() -> None:
    with pytest.raises(ValidationError):
        detector_spec("rtdetrv4_s").num_queries = 100  # type: ignore[misc]
    with pytest.raises(ValidationError):
        DetectorSpec(name="mine", family="deim", backbone="hgnetv2_b0", colour="red")  # type: ignore[call-arg]
