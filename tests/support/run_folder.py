"""A run's folder with made-up figures, for what reads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detectors.training.recipe import recipe_for
from detectors.training.report_page import write_report
from detectors.training.run_file import begin_run

from .page import Node, parse_page

GROUPS = [
    {"name": "backbone", "tensors": 102, "parameters": 1_850_396, "learning_rate": 2.5e-05, "weight_decay": 0.0001},
    {"name": "rest", "tensors": 166, "parameters": 8_471_481, "learning_rate": 0.0004, "weight_decay": 0.0},
]
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "torch": "2.15.0+cu126"},
    "hardware": {
        "cpu": "A Processor", "cores": 16, "memory": 64 * 2**30, "processes": 4, "machines": 2, "cudnn": "90701",
        "gpus": [{"name": "NVIDIA H100", "memory": 80 * 2**30}] * 2,
    },
    "platform": "Linux-6",
}  # fmt: skip


def epoch_line(epoch: int, *, evaluated: bool = True, teacher: bool = True, **more: Any) -> dict[str, Any]:
    """Return a line of metrics.jsonl."""
    line: dict[str, Any] = {"epoch": epoch, "loss": 40.5 - epoch, "loss_mal": 8.25 - epoch / 8, "loss_bbox": 2.5}
    if teacher:
        line |= {
            "loss_semantic": 2.0,
            "semantic_loss": 0.5,
            "weight": 4.0 + epoch,
            "share": 10.5,
            "modulation": "raised",
        }
    line |= {"learning_rate": 0.0008, "bad_steps": 0}
    if evaluated:
        ap = (epoch + 1) / 20
        line |= {"AP": ap, "AP50": 1.5 * ap, "AP75": ap, "AP_small": -1.0, "AP_medium": ap, "AP_large": ap}
        line |= {"AR_100": 0.75, "AR_small": -1.0, "AR_medium": 0.5, "AR_large": 0.25}
        line["AP_per_class"] = {"dog": ap, "leash": ap / 2, "unicorn": -1.0}
    return {**line, **more}


def timing_line(epoch: int, seconds: float = 100.0, speed: float = 50.0) -> dict[str, Any]:
    """Return a line of timing.jsonl; 80 % of the time is training."""
    peak = {"bytes": 3 * 2**30, "of": "CUDA"}
    return {"epoch": epoch, "seconds": seconds, "training_seconds": 0.8 * seconds, "images_per_second": speed,
            "peak_memory": peak}  # fmt: skip


def facts(**recipe: Any) -> dict[str, Any]:
    """Return what run.json of an RT-DETRv4-N run of 8 epochs is made from; keywords replace fields of its recipe."""
    chosen = recipe_for("rtdetrv4_n", **{"epochs": 8, "plain_epochs": 2, "data": "cards", **recipe})
    spec = {"name": "dinov3_vitb16", "license": "DINOv3 License", "params": 85_660_416}
    return {
        "recipe": chosen.model_dump(mode="json"),
        "environment": ENVIRONMENT,
        "command": "python train.py --epochs 8",
        "teachers": [spec] if chosen.teacher else [],
        "data": [
            {"annotation_file": f"cards/{split}.json", "images": 1840, "class_names": ["dog", "leash", "unicorn"]}
            for split in ("train", "val")
        ],
        "parameter_groups": GROUPS,
    }


def write_run(folder: Path, lines: list[dict[str, Any]], timing: list[dict[str, Any]] | None = None) -> Path:
    """Write the two files with a line an epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    times = [timing_line(line["epoch"]) for line in lines] if timing is None else timing
    for name, content in (("metrics.jsonl", lines), ("timing.jsonl", times)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
    return folder


def finished_run(folder: Path, **recipe: Any) -> Path:
    """Write all files of a run of 8 epochs, evaluated after every second one, without the mark that it ended."""
    teacher = recipe.get("teacher") != "none"
    write_run(folder, [epoch_line(epoch, evaluated=epoch % 2 == 1, teacher=teacher) for epoch in range(8)])
    begin_run(folder, facts(**recipe))
    return folder


def open_report(folder: Path) -> Node:
    """Write a run's report and return the page."""
    return parse_page(write_report(folder).read_text(encoding="utf-8"))
