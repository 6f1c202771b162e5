"""What does an attached distiller cost, but for the teacher's network?

Two copies of a detector train on one batch, step by step in turn: forward with targets, criterion, backward, AdamW's
step, zero_grad. One of them has a distiller attached, with all that belongs to it: the hook, the images brought to the
teacher's size and normalised, the injector (a linear projector to the teacher's width and the cosine), its share of
backward and of AdamW, and observe(). Only the teacher's network is replaced by a map that is stored. The learning rate
is 0 and every step draws the same numbers, so that all steps do the same work. The figures are the ratio of the
medians, and the time of observe(), taken in further steps, as a part of these steps' median.

    python benchmarks/hook_overhead.py
    python benchmarks/hook_overhead.py --device cuda --model rtdetrv4_l --size 640 --batch 8 --rounds 50
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from timing import alternate, machine, seconds, summary
from torch import Tensor, nn

import detectors
import vfmdistill


class StoredMap(nn.Module):
    """Stands for a teacher's network whose answer is known."""

    stored: Tensor

    def __init__(self, stored: Tensor) -> None:
        super().__init__()
        self.register_buffer("stored", stored)

    def forward(self, images: Tensor) -> Tensor:
        """Return the map, whatever the images."""
        return self.stored


def batch_of(images: int, size: int, device: torch.device) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return noise with seven boxes in each image, as many as COCO has on average."""
    targets = []
    for _ in range(images):
        boxes = torch.cat([0.2 + 0.6 * torch.rand(7, 2), 0.05 + 0.3 * torch.rand(7, 2)], dim=1)
        targets.append({"labels": torch.randint(80, (7,), device=device), "boxes": boxes.to(device)})
    return torch.rand(images, 3, size, size, device=device), targets


class Training:
    """Trains a detector on one batch, with a distiller or without."""

    def __init__(
        self, model: detectors.Detector, batch: tuple[Tensor, Any], distiller: vfmdistill.Distiller | None = None
    ) -> None:
        self.images, self.targets = batch
        self.model, self.distiller = model, distiller
        self.criterion = detectors.build_criterion(model.spec, num_classes=model.num_classes)
        trained = [*model.parameters(), *(distiller.parameters() if distiller is not None else ())]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step(self, observe: Callable[[], object] | None = None) -> None:
        """Do one step; `observe` runs in place of the distiller's."""
        torch.manual_seed(0)
        losses = self.criterion(self.model(self.images, self.targets), self.targets)
        loss = torch.stack(list(losses.values())).sum()
        if self.distiller is None:
            loss.backward()
        else:
            (loss + self.distiller.loss(self.images)).backward()
            (observe or self.distiller.observe)()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds_of_observe(self, device: torch.device) -> tuple[float, float]:
        """Do one step, and return how long observe() and the whole step took."""
        assert self.distiller is not None
        distiller, inner = self.distiller, []
        whole = seconds(lambda: self.step(lambda: inner.append(seconds(distiller.observe, device))), device)
        return inner[0], whole


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description="Steps with and without a distiller; prints JSON.")
    parser.add_argument("--model", default="rtdetrv4_s", help="a detector (default: %(default)s)")
    parser.add_argument("--teacher", default="dinov2_vitb14", help="whose width the map has (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=320, help="height and width of the images, a multiple of 32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each kind, after 3 to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, cells = torch.device(options.device), options.size // 32
    batch = batch_of(options.batch, options.size, device)
    model = detectors.build(options.model, num_classes=80).to(device).train()
    spec = vfmdistill.teacher_spec(options.teacher)
    stored = torch.randn(options.batch, spec.embed_dim, cells, cells)
    teacher = vfmdistill.Teacher(StoredMap(stored), spec=spec)
    twin = copy.deepcopy(model)
    with vfmdistill.attach(model, teacher) as distiller:
        plain, distilled = Training(twin, batch), Training(model, batch, distiller)
        times = alternate({"plain": plain.step, "distilled": distilled.step}, options.rounds, device)
        inner = [distilled.seconds_of_observe(device) for _ in range(options.rounds)]
        if not 0 < distiller.metrics()["share"] < 100:
            raise SystemExit(f"the distiller did not teach: {distiller.metrics()}")
    figures = {name: summary(measured) for name, measured in times.items()}
    observe, steps = (summary(list(measured)) for measured in zip(*inner, strict=True))
    ratio = figures["distilled"]["median_ms"] / figures["plain"]["median_ms"]
    part = observe["median_ms"] / steps["median_ms"]
    answers = {"ratio": round(ratio, 4), "observe_part": round(part, 4), **figures, "observe": observe}
    versions = {"torch": torch.__version__, "vfmdistill": vfmdistill.__version__}
    print(json.dumps({**answers, "setting": {**vars(options), "machine": machine(device), **versions}}, indent=1))


if __name__ == "__main__":
    main()
