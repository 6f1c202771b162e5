"""What does Teacher cost beside the same timm model called by hand?

Both get the same images in [0, 1], which have the teacher's own size already, so that nobody resizes; both normalise
them, run the network once and bring the patch tokens to a map (N, C, h, w). Runs alternate, and so does who begins;
the figure is the ratio of the medians. Weights are random: they do not matter for the time.

    python benchmarks/teacher_overhead.py
    python benchmarks/teacher_overhead.py --device cuda --dtype bfloat16 --batch 16 --grid 20 20
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import timm
import torch
from timing import alternate, machine, summary
from torch import Tensor

import vfmdistill


def by_hand(teacher: vfmdistill.Teacher, grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return what one would write without this library: a timm ViT of the same weights, and the steps around it."""
    device, dtype = teacher.device, teacher.dtype
    network: Any = teacher.network
    model: Any = timm.create_model(teacher.spec.model_id, pretrained=False, num_classes=0, dynamic_img_size=True)
    model.load_state_dict(network.network.state_dict())
    model.to(device, dtype).eval().requires_grad_(False)
    mean = torch.tensor(teacher.spec.mean, device=device).view(3, 1, 1)
    std = torch.tensor(teacher.spec.std, device=device).view(3, 1, 1)

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        tokens = model.forward_features(((images - mean) / std).to(dtype))
        feature_map: Tensor = tokens[:, model.num_prefix_tokens :].mT.unflatten(2, grid).contiguous()
        return feature_map

    return run


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description="Teacher beside the same timm ViT called by hand; prints JSON.")
    parser.add_argument("--teacher", default="dinov2_vits14", help="a ViT on timm (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--grid", type=int, nargs=2, default=(16, 16), metavar=("H", "W"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--runs", type=int, default=30, help="of each, after 3 to warm up")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, grid = torch.device(options.device), (options.grid[0], options.grid[1])
    dtype = getattr(torch, options.dtype)
    teacher = vfmdistill.Teacher(options.teacher, pretrained=False, dtype=dtype).to(device)
    patch = teacher.spec.patch_size
    images = torch.rand(options.batch, 3, grid[0] * patch, grid[1] * patch, device=device)
    hand = by_hand(teacher, grid)
    runs = {"teacher": lambda: teacher(images, grid).map, "by_hand": lambda: hand(images)}
    shapes = {name: tuple(run().shape) for name, run in runs.items()}
    if len(set(shapes.values())) > 1:
        raise SystemExit(f"the two do not compute the same: {shapes}")
    times = alternate(runs, options.runs, device)
    figures = {name: summary(measured) for name, measured in times.items()}
    ratio = figures["teacher"]["median_ms"] / figures["by_hand"]["median_ms"]
    versions = {"torch": torch.__version__, "timm": timm.__version__, "vfmdistill": vfmdistill.__version__}
    setting = {**vars(options), "grid": grid, "machine": machine(device), **versions}
    print(json.dumps({"ratio": round(ratio, 4), **figures, "setting": setting}, indent=1))


if __name__ == "__main__":
    main()
