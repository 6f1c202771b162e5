from __future__ import annotations

from typing import Any

import pytest
import torch
from support.random_weights import randomise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import detectors
import vfmdistill
from detectors.deploy import deploy
from vfmdistill.errors import InputError

SMALL: dict[str, Any] = {"num_queries": 20, "decoder_layers": 2}
# GFLOPs of one image of 640 × 640 after re-parameterisation, measured on the authors' code (RT-DETRv4 commit df44122;
# rtdetr_*: lyuwenyu/RT-DETR) with 80 classes by torch's FLOP counter. Families of one size have the same.
DEPLOYED_GFLOPS = {
    "deim_n": 7.31, "rtdetrv4_s": 25.50, "rtdetrv4_m": 57.03, "rtdetrv4_l": 91.60, "dfine_x": 203.08,
    "rtdetrv2_r18": 60.50, "rtdetr_r34": 92.61, "rtdetrv2_r50_m": 99.62, "deim_rtdetrv2_r50_m": 99.61,
    "rtdetr_r50": 133.85, "deim_rtdetrv2_r101": 251.72,
}  # fmt: skip


def build(name: str, seed: int = 0, **options: Any) -> detectors.Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = detectors.build(name, class_names=["cat", "dog", "owl"], **{**SMALL, **options})
    randomise(model, seed)
    return model


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deim_n", {}),
        ("dfine_n", {"decoder_layers": 3, "decoder_eval_index": 0}),
        ("rtdetrv4_s", {}),
        ("dfine_s", {"backbone_freeze_norms": True, "backbone_freeze_stem": True}),
        ("rtdetrv2_r18", {}),
        ("rtdetr_r34", {"decoder_layers": 3, "decoder_eval_index": 1, "backbone_freeze_norms": True}),
        ("deim_rtdetrv2_r50_m", {"decoder_layers": 3}),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_same_outputs_without_norms(name: str, options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    model = build(name, **options).to(dtype).eval()
    fast = deploy(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(images(dtype)), model(images(dtype)), rtol=0, atol=tolerance)
    assert not [key for key in fast.state_dict() if "running" in key or "num_batches" in key]
    assert not [module for module in fast.modules() if "BatchNorm" in type(module).__name__]
    assert not [parameter for parameter in fast.parameters() if parameter.requires_grad]


def test_only_what_answers_is_left() -> None:
    model = build("dfine_n", decoder_layers=3, decoder_eval_index=1)
    keys = deploy(model).decoder.state_dict().keys()
    assert {key.split(".")[1] for key in keys if key.startswith("stages.")} == {"0", "1"}
    assert not [key for key in keys if key.startswith(("stages.0.score_head", "stages.0.quality", "denoising"))]
    assert {"stages.0.corner_head.layers.0.weight", "stages.1.score_head.weight", "first_box_head.layers.0.bias"} < keys


@pytest.mark.parametrize("name", DEPLOYED_GFLOPS)
def test_operations_and_parameters(name: str) -> None:
    with torch.device("meta"):
        model = detectors.build(name, num_classes=80)
        fast = deploy(model)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            fast(torch.zeros(1, 3, 640, 640))
    assert counter.get_total_flops() / 1e9 <= 1.001 * DEPLOYED_GFLOPS[name]
    assert sum(p.numel() for p in fast.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_given_detector_stays_as_it_is() -> None:
    model = build("deim_n").train()
    model.encoder.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    random = torch.get_rng_state()
    fast = deploy(model)
    for parameter in fast.parameters():
        parameter.zero_()
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.deployed


def test_attributes_that_are_only_called_like_hooks_are_copied() -> None:
    model = build("deim_n")
    model.backbone.feature_hooks = None  # as timm's MobileNetV3 has it
    assert deploy(model).backbone.feature_hooks is None


def test_an_attached_student_is_deployed_without_the_distiller() -> None:
    student = build("deim_n").train()
    with vfmdistill.attach(student, nn.Conv2d(3, 6, 16, 16)) as distiller:
        fast = deploy(student)
        assert not [
            hooks
            for module in fast.modules()
            for name, hooks in vars(module).items()
            if "_hooks" in name and hooks
        ]  # fmt: skip
        student(images())
        distiller.loss(images()).backward()  # the student's own hooks are still there
    assert fast.state_dict().keys() == deploy(student).state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(fast(images()), deploy(build("deim_n"))(images()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["rtdetrv4_m", "rtdetrv2_r18"])
def test_which_tensors_there_are_depends_on_the_spec_alone(name: str) -> None:
    fast, other = deploy(build(name)), deploy(build(name, seed=1).train())
    other.load_state_dict(fast.state_dict())
    torch.testing.assert_close(other(images()), fast(images()), rtol=0, atol=0)


def test_it_knows_what_the_given_one_knows() -> None:
    model = build("deim_n")
    model.category_ids, model.license = [7, 90, 13], "Apache-2.0"
    fast = deploy(model)
    assert isinstance(fast, detectors.Detector)
    assert (fast.spec, fast.class_names, fast.num_classes) == (model.spec, ["cat", "dog", "owl"], 3)
    assert (fast.category_ids, fast.license, fast.deployed) == ([7, 90, 13], "Apache-2.0", True)
    fast.category_ids.append(1)
    assert model.category_ids == [7, 90, 13]


def test_it_cannot_be_trained() -> None:
    fast = deploy(build("deim_n").train())
    assert not any(module.training for module in fast.modules())
    assert not fast.eval().train(False).training
    with pytest.raises(InputError, match="cannot be trained"):
        fast.train()


def test_deploying_again_copies() -> None:
    fast = deploy(build("deim_n"))
    again = deploy(fast)
    assert again is not fast
    assert again.deployed
    torch.testing.assert_close(again.state_dict(), fast.state_dict(), rtol=0, atol=0)
    again.decoder.stages[0].layer.norm1.weight.zero_()
    assert fast.decoder.stages[0].layer.norm1.weight.any()


def test_tensors_are_of_use_outside_inference_mode() -> None:
    model = build("deim_n")
    with torch.inference_mode():
        fast = deploy(model)
    assert not any(tensor.is_inference() for tensor in fast.state_dict().values())


@pytest.mark.parametrize("wrapped", [nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2)), None])
def test_only_detectors_can_be_deployed(wrapped: Any) -> None:
    with pytest.raises(InputError, match=f"expected a detector, got {type(wrapped).__name__}"):
        deploy(wrapped)
