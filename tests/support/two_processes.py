"""What two processes do with an engine, for tests that compare it with what one does.

As a program, run by torchrun: two_processes.py FOLDER SCENARIO… Every process writes what a scenario returned to
FOLDER/SCENARIO_RANK.safetensors. "-sharded" behind its name splits the weights over the processes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import detectors
from detectors.training import engine as engine_module
from detectors.training import recipe_for
from detectors.training.ema import WeightAverage
from detectors.training.engine import Engine
from detectors.training.optimizer import build_optimizer, parameter_groups
from detectors.training.recipe import Recipe
from detectors.training.sharding import gathered, local

STEPS, BATCH = 20, 4
Named = dict[str, Tensor]


def recipe(**settings: Any) -> Recipe:
    """Return a recipe of the smallest detector, on the CPU."""
    return recipe_for("deim_n", **{"device": "cpu", "input_size": 64, "learning_rate": 1e-4, **settings})


def detector(seed: int = 0, **options: Any) -> detectors.Detector:
    """Return a detector of milliseconds, in training mode. In float64: rounding decides nothing that is compared."""
    sizes: dict[str, Any] = {
        "backbone": "test_resnet", "backbone_stages": (3, 4), "encoder_dim": 16, "encoder_heads": 2,
        "encoder_feedforward": 16, "encoder_depth": 0.34, "decoder_dim": 16, "decoder_heads": 2,
        "decoder_feedforward": 16, "decoder_layers": 2, "num_queries": 10, "num_denoising": 0,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return detectors.build("deim_n", num_classes=3, input_size=(64, 64), **{**sizes, **options}).double().train()


def batch(step: int, images: int = BATCH) -> tuple[Tensor, list[Named]]:
    """Return images of noise with boxes; one in four has none."""
    generator = torch.Generator().manual_seed(step)
    pixels = torch.rand(images, 3, 64, 64, generator=generator, dtype=torch.float64)
    targets = []
    for index in range(images):
        count = (1 + step % 3, 0, 2, 4)[index % 4]
        boxes = 0.3 + 0.4 * torch.rand(count, 4, generator=generator, dtype=torch.float64)
        targets.append({"labels": torch.randint(3, (count,), generator=generator), "boxes": boxes})
    return pixels, targets


class Run:
    """A training run without a trainer: the engine, a detector, AdamW, the criterion."""

    def __init__(self, *, seed: int = 0, options: dict[str, Any] | None = None, **settings: Any) -> None:
        self.engine = Engine(recipe(**settings))
        self.model = self.engine.place(detector(seed, **(options or {})))
        self.average = WeightAverage(self.model, decay=0.5, warmup=1)
        self.engine.shard(self.model)
        self.engine.shard(self.average.model)
        groups = parameter_groups(self.model, None, recipe(**settings))
        self.network, self.optimizer = self.engine.prepare(self.model, build_optimizer(groups, recipe(**settings)))
        self.criterion = detectors.build_criterion("deim_n", num_classes=3)

    def mine(self, step: int) -> tuple[Tensor, list[Named]]:
        """Return this process's part of a batch."""
        images, targets = batch(step)
        count = BATCH // self.engine.world
        part = slice(self.engine.rank * count, (self.engine.rank + 1) * count)
        return images[part], targets[part]

    def backward(self, images: Tensor, targets: list[Named], share: float = 1.0) -> None:
        losses = self.criterion(self.network(images, targets), targets)
        self.engine.backward(share * torch.stack(list(losses.values())).sum())

    def step(self, number: int) -> None:
        self.backward(*self.mine(number))
        self.engine.clip(self.model.parameters(), 0.1)
        self.engine.step()
        self.engine.zero_grad()
        self.average.update(self.model)

    def gradients(self) -> Named:
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        return {name: gradient.clone() for name, gradient in gathered(found).items()}

    def tensors(self) -> Named:
        """Return everything that training moves."""
        parts = {
            "model": self.engine.full_state(self.model),
            "average": self.engine.full_state(self.average.model),
            "optimizer": self.engine.optimizer_tensors(self.optimizer),
        }
        return {f"{part}.{name}": value.clone() for part, values in parts.items() for name, value in values.items()}


def loop(**settings: Any) -> Named:
    """Train and return what came of it, and how far the weights moved."""
    run = Run(**settings)
    before = run.tensors()
    for number in range(STEPS):
        run.step(number)
    after = run.tensors()
    weights = [f"model.{name}" for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    moved = torch.stack([(after[name] - before[name]).abs().max() for name in weights])
    return after | {"moved": moved}


def batch_norm(rank: int) -> tuple[Tensor, Tensor]:
    """Return a process's maps, of another number and size in each, and the gradient of its loss by the output."""
    generator = torch.Generator().manual_seed(rank)
    shape = ((3, 5, 4, 4), (1, 5, 6, 2))[rank]
    return torch.randn(shape, generator=generator) * 2 + 1, torch.randn(shape, generator=generator)


def norms(**settings: Any) -> Named:
    """Run synchronised batch norms of torch and of timm forward and backward, twice."""
    from timm.layers import BatchNormAct2d

    engine, found = Engine(recipe(**settings)), {}
    kinds = {"torch": nn.BatchNorm2d(5), "timm": BatchNormAct2d(5), "mean": nn.BatchNorm2d(5, momentum=None)}
    for name, norm in kinds.items():
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(3))
        placed = engine.place(nn.Sequential(norm))
        images, gradient = batch_norm(engine.rank)
        images.requires_grad_()
        for _ in range(2):
            out = placed(images)
        out.backward(gradient)
        found |= {f"{name}.out": out.detach(), f"{name}.gradient": images.grad}
        found |= {f"{name}.by_weight": placed[0].weight.grad, f"{name}.by_bias": placed[0].bias.grad}
        found |= {f"{name}.{key}": value for key, value in placed.state_dict().items()}
        found[f"{name}.eval"] = placed.eval()(images).detach()
    return found


def parts(**settings: Any) -> Named:
    """Accumulate a batch from two parts, with frozen batch norms, and clip."""
    run = Run(**settings)
    for module in run.model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    images, _ = run.mine(0)
    half = len(images) // 2
    with run.engine.no_sync(run.network):
        run.network(images[:half])["pred_logits"].square().mean().div(2).backward()
    run.network(images[half:])["pred_logits"].square().mean().div(2).backward()
    found = {f"whole.{name}": gradient for name, gradient in run.gradients().items()}
    found["norm"] = run.engine.clip(run.model.parameters(), 0.01)
    return found | {f"clipped.{name}": gradient for name, gradient in run.gradients().items()}


def no_boxes(**settings: Any) -> Named:
    """Run a step with denoising where the second process has no box, and one without any: no process waits for ever."""
    run = Run(options={"num_denoising": 4}, **settings)
    images, targets = batch(0, 2)
    torch.manual_seed(0)
    run.backward(images[run.engine.rank :][:1], targets[run.engine.rank :][:1])
    gradients = run.gradients()
    run.engine.zero_grad()
    run.backward(images[:1], targets[1:])
    return gradients


def resumed(**settings: Any) -> Named:
    """Save after two steps, go on in a run from other weights; return in how many tensors the next step differs."""
    first, second = Run(**settings), Run(seed=1, **settings)
    for number in range(2):
        first.step(number)
    for get, take, ours, theirs in (
        ("full_state", "load_full_state", first.model, second.model),
        ("full_state", "load_full_state", first.average.model, second.average.model),
        ("optimizer_tensors", "load_optimizer_tensors", first.optimizer, second.optimizer),
    ):
        stored = {name: value.clone() for name, value in getattr(first.engine, get)(ours).items()}
        getattr(second.engine, take)(theirs, stored)
    second.average.updates = first.average.updates
    saved = first.tensors()
    for run in (first, second):
        run.step(2)
    undisturbed, continued = first.tensors(), second.tensors()
    return {
        "moved": torch.tensor(sum(not torch.equal(saved[name], value) for name, value in undisturbed.items())),
        "different": torch.tensor(sum(not torch.equal(continued[name], value) for name, value in undisturbed.items())),
        "held": torch.tensor(sum(local(parameter).numel() for parameter in second.model.parameters())),
        "all": torch.tensor(sum(parameter.numel() for parameter in second.model.parameters())),
    }


def overflow(**settings: Any) -> Named:
    """Step in fp16 where a shard of the gradient overflows in one process, then where none does."""
    engine_module.check_device = lambda *_: None  # the CPU has no fp16, but can scale losses all the same
    run = Run(precision="fp16", **settings)
    before = {name: local(parameter).clone() for name, parameter in run.model.named_parameters()}
    run.engine.load_scaler_state({**run.engine.scaler_state(), "scale": 1024.0})
    scales, moved = [], []
    for overflows in (True, False):
        run.backward(*run.mine(0))
        if overflows and run.engine.rank == 1:
            local(run.model.encoder.aifi.layers[0].norm1.weight.grad).fill_(torch.inf)
        norm = run.engine.clip(run.model.parameters(), 0.1)
        run.engine.step()
        run.engine.zero_grad()
        scales.append(run.engine.scale)
        now = run.model.named_parameters()
        moved.append(any(not torch.equal(before[name], local(parameter)) for name, parameter in now))
    return {"scales": torch.tensor(scales), "moved": torch.tensor(moved), "norm": norm}


def averaged(**settings: Any) -> Named:
    """Run the averaged model, in one process more often than in the other."""
    run = Run(**settings)
    run.step(0)
    images, _ = batch(1)
    with torch.no_grad(), run.engine.whole(run.average.model) as model:
        for _ in range(1 + run.engine.rank):
            logits = model(images)["pred_logits"]
    plain = detector(seed=5).eval()
    plain.load_state_dict(run.engine.full_state(run.average.model))
    with torch.no_grad():
        return {"inside": logits, "plain": plain(images)["pred_logits"]}


def agreement(**settings: Any) -> Named:
    """Vote, and give away statistics and weights."""
    engine = Engine(recipe(**settings))
    votes = engine.agree(engine.rank == 1, False, True)
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(engine.rank + 1)
    engine.share_statistics(norm)
    placed = engine.place(nn.Linear(2, 2))  # of other weights in each process
    return {"votes": torch.tensor(votes), "mean": norm.running_mean, "weight": placed.weight.detach()}


SPLIT = {"loop": loop, "parts": parts, "no_boxes": no_boxes, "resumed": resumed, "averaged": averaged}
SCENARIOS = {**SPLIT, "norms": norms, "agreement": agreement, "overflow": overflow}

if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    rank = Engine(recipe()).rank
    for name in names:
        kind, _, option = name.partition("-")
        found = SCENARIOS[kind](shard=option == "sharded")
        tensors = {key: value.detach().contiguous() for key, value in found.items()}
        save_file(tensors, Path(folder) / f"{name}_{rank}.safetensors")
