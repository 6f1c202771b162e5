"""What an engine does in one process; test_processes.py has what takes two."""

from __future__ import annotations

import copy

import pytest
import torch
from support.two_processes import Run, batch, detector, recipe
from torch import Tensor, nn

import detectors
import vfmdistill
from detectors.hybrid_encoder import HybridEncoder
from detectors.training import engine as engine_module
from detectors.training.compiled import compile_parts
from detectors.training.engine import Engine
from detectors.training.launch_checks import check_device
from vfmdistill.errors import DistillError, InputError


def test_one_process_trains_the_model_itself() -> None:
    model = nn.Linear(2, 2)
    engine = Engine(recipe(shard=True))
    placed = engine.place(model)
    engine.shard(placed)
    network, _ = engine.prepare(placed, torch.optim.SGD(placed.parameters()))
    assert network is placed is model
    assert (engine.rank, engine.world, engine.is_main, engine.device.type) == (0, 1, True, "cpu")
    assert engine.agree(True, False) == (True, False)
    assert engine.scale is None
    assert engine.scaler_state() is None


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clip_does_what_torch_does(max_norm: float) -> None:
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in (3, (2, 2), 1)] for _ in range(2))
    for parameter in (*ours[:2], *theirs[:2]):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    norm = Engine(recipe()).clip(ours, max_norm)
    assert norm.shape == ()
    assert norm == nn.utils.clip_grad_norm_(theirs, max_norm)
    for parameter, other in zip(ours, theirs, strict=True):
        assert (parameter.grad is None) == (other.grad is None)
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad)


def test_fp16_scales_the_loss_and_skips_what_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "check_device", lambda *_: None)  # the CPU can scale losses all the same
    engine = Engine(recipe(precision="fp16"))
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    engine.prepare(nn.Module(), torch.optim.SGD([weight], lr=1.0))
    state = engine.scaler_state()
    assert state is not None
    engine.load_scaler_state({**state, "scale": 8.0, "growth_interval": 2})

    engine.backward(weight.square().sum() / 2)
    assert weight.grad is not None
    assert weight.grad.tolist() == [24, 32]
    assert engine.clip([weight], 0.5).item() == pytest.approx(5)
    assert weight.grad.tolist() == pytest.approx([0.3, 0.4])
    engine.zero_grad()  # without a step, as after a bad one
    assert engine.scale == 8

    for factor, scale in ((float("inf"), 4), (1.0, 4), (1.0, 8)):  # overflows, fits, and grows after two that fit
        before = weight.detach().clone()
        engine.backward(factor * weight.square().sum())
        norm = engine.clip([weight], 0.5)
        engine.step()
        engine.zero_grad()
        assert weight.grad is None
        assert torch.equal(weight, before) == (factor != 1)
        assert norm.isfinite() == (factor == 1)
        assert engine.scale == scale


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_half_precision_leaves_boxes_and_losses_in_float32(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "check_device", lambda *_: None)
    engine = Engine(recipe(precision=precision))
    model = detector(num_denoising=4).float()
    seen: list[torch.dtype] = []
    model.encoder.aifi.layers[0].feedforward[0].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    images, targets = batch(0)
    targets = [{**target, "boxes": target["boxes"].float()} for target in targets]
    with engine.autocast():
        outputs = model(images.float(), targets)
    assert seen == [{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    layers = [outputs, *outputs["aux_outputs"], *outputs["dn_outputs"], *outputs["enc_aux_outputs"]]
    assert {layer["pred_boxes"].dtype for layer in layers} == {torch.float32}
    losses = detectors.build_criterion("deim_n", num_classes=3)(outputs, targets)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())


def test_fp16_without_an_accelerator_is_refused() -> None:
    with pytest.raises(InputError, match="precision fp16 needs an accelerator"):
        Engine(recipe(precision="fp16"))


def test_shards_on_the_cpu_are_refused_where_torch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "Stream", object)
    check_device(recipe(shard=True), torch.device("cpu"), 1)
    check_device(recipe(shard=True), torch.device("cuda"), 2)
    with pytest.raises(InputError, match="shards on accelerators only"):
        check_device(recipe(shard=True), torch.device("cpu"), 2)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "ACCELERATE_USE_FSDP is set: drop it, and shard with --shard"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "its precision is bf16, the recipe's fp32: give --precision"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "its dynamo backend is inductor.* give --compile"),
    ],
)
def test_what_the_launcher_would_do_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=message):
        Engine(recipe())


def test_what_the_launcher_says_of_precision_may_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    with Engine(recipe(precision="bf16")).autocast():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_step_before_prepare_is_an_error() -> None:
    with pytest.raises(DistillError, match="call prepare"):
        Engine(recipe()).step()


def test_compiling_leaves_names_and_copies_alone() -> None:
    eager, run = detector(), Run(compile=True)
    assert run.model.state_dict().keys() == eager.state_dict().keys()
    compiled = {name for name, module in run.model.named_modules() if module._compiled_call_impl is not None}
    assert compiled == {"backbone", "encoder"}
    assert all(module._compiled_call_impl is None for module in run.average.model.modules())
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(run.model).modules())


class Student(nn.Module):
    """A detector as far as its encoder, small enough to be compiled in a test."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.BatchNorm2d(8), nn.ReLU())
        self.encoder = HybridEncoder((8,), dim=8, num_heads=2, feedforward=8)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.encoder([self.backbone(images)])[0]
        return out


def test_a_compiled_student_is_distilled_as_an_eager_one() -> None:
    """Loss, semantic loss, share and gradients, at sizes that change from batch to batch."""
    torch.manual_seed(0)
    eager, teacher = Student().train(), nn.Conv2d(3, 6, 16, 16)
    compiled = copy.deepcopy(eager)
    found = []
    for student in (eager, compiled):
        torch.manual_seed(1)
        rows = []
        with vfmdistill.attach(student, teacher, tap="encoder.aifi", probe=torch.zeros(1, 3, 64, 64)) as distiller:
            if student is compiled:
                compile_parts(student, dynamic=True, backend="aot_eager")
            for seed, (height, width) in enumerate([(96, 160), (64, 192), (96, 160)]):
                images = torch.rand(5, 3, height, width, generator=torch.Generator().manual_seed(seed))
                loss = student(images).square().mean()
                semantic = distiller.loss(images)
                (loss + semantic).backward()
                distiller.observe()
                gradients = [p.grad for p in [*student.parameters(), *distiller.parameters()]]
                share = torch.tensor(distiller.metrics()["share"])
                rows.append([loss.detach(), semantic.detach(), share, *gradients])
                student.zero_grad()
                distiller.injectors.zero_grad()
        found.append(rows)
    assert found[0][0][2] > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert compiled.encoder._compiled_call_impl is not None
