from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

import detectors
from detectors.catalog import CATALOG, DetectorSpec, detector_spec, list_models
from vfmdistill.errors import InputError, UnknownNameError

# Parameters of backbone, encoder and decoder with 80 classes, measured on the authors' code (RT-DETRv4 commit df44122).
N = (1_850_396, 703_824, 1_228_473)
S = (1_850_396, 4_021_504, 4_449_977)
M = (6_026_626, 7_799_040, 5_764_398)
L = (13_553_376, 9_343_232, 8_393_240)
X = (33_325_760, 20_700_032, 8_689_688)
PARAMETERS = {
    "rtdetrv4_n": N, "rtdetrv4_s": S, "rtdetrv4_m": M, "rtdetrv4_l": L, "rtdetrv4_x": X,
    "deim_n": N, "deim_s": S, "deim_m": M, "deim_l": L, "deim_x": X,
    "dfine_n": N, "dfine_s": S, "dfine_m": M,
    "dfine_l": (13_507_680, *L[1:]), "dfine_x": (33_231_840, *X[1:]),
}  # fmt: skip
TOTALS = {
    "rtdetrv4_s": 10_321_877, "rtdetrv4_m": 19_590_064, "rtdetrv4_l": 31_289_848, "rtdetrv4_x": 62_715_480,
    "deim_n": 3_782_693, "dfine_l": 31_244_152, "dfine_x": 62_621_560,
}  # fmt: skip


@pytest.mark.parametrize("name", CATALOG)
def test_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = detectors.build(name, num_classes=80)
    parts = (model.backbone, model.encoder, model.decoder)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == PARAMETERS[name]
    assert sum(PARAMETERS[name]) == TOTALS.get(name, sum(PARAMETERS[name]))


def test_list_of_models() -> None:
    assert list_models() == list(PARAMETERS)
    assert list_models("*_n") == ["rtdetrv4_n", "deim_n", "dfine_n"]
    assert list_models("nothing") == []


@pytest.mark.parametrize(
    ("family", "activation", "classification", "gamma", "alpha"),
    [("rtdetrv4", "silu", "mal", 1.5, None), ("deim", "silu", "mal", 1.5, None), ("dfine", "relu", "vfl", 2.0, 0.75)],
)
def test_families(family: str, activation: str, classification: str, gamma: float, alpha: float | None) -> None:
    """The authors' configuration: families differ in the decoder's activation and the classification loss only."""
    for name in list_models(f"{family}_*"):
        spec = detector_spec(name)
        assert (spec.family, spec.activation, spec.classification) == (family, activation, classification)
        assert (spec.gamma, spec.alpha) == (gamma, alpha)
        assert (spec.num_queries, spec.num_denoising, spec.label_noise, spec.box_noise) == (300, 100, 0.5, 1.0)
        assert (spec.reg_max, spec.reg_scale) == (32, 8.0 if name.endswith("_x") else 4.0)
        assert spec.union_matching


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
