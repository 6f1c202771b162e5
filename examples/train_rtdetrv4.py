"""Train RT-DETRv4 (arXiv 2510.25257) on a COCO-format data set, with a frozen foundation model as teacher.

    python examples/train_rtdetrv4.py                                        # a demonstration, on images drawn here
    python examples/train_rtdetrv4.py --data coco --invalid-boxes drop       # size S on COCO, with the paper's settings
    python examples/train_rtdetrv4.py --data cards --epochs 50 --input-size 320 --teacher efficientnet_lite0
    python examples/train_rtdetrv4.py --data cards --epochs 20 --weights runs/train/pretrained  # fine-tuning

The folder holds `images/` with `instances_train.json` and `instances_val.json`, or the layout of COCO, Roboflow, YOLO
or Pascal VOC.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from detectors import postprocess
from detectors.data.toy import write_toy_dataset
from detectors.drawing import draw_detections, save_grid
from detectors.training import Interrupted, Trainer, assemble, parse_recipe
from detectors.training.report_page import write_report
from detectors.training.snapshot import PRETRAINED
from vfmdistill import DistillError
from vfmdistill.visualize import fit_pca, pca_maps, save_sheet

# The smallest detector, small images, and a teacher whose weights come with a package: minutes on two cores.
DEMO = {
    "model": "rtdetrv4_n",
    "teacher": "efficientnet_lite0",
    "pretrained_backbone": False,
    "output": Path("runs/demo"),
    "input_size": 160,
    "batch_size": 8,
    "workers": 1,
    "epochs": 6,
    "evaluate_every": 2,
    "augment": False,
    "num_queries": 60,
    "num_denoising": 60,
    "learning_rate": 1e-3,
    "backbone_learning_rate": 1e-3,
    "ema_decay": 0.99,
    "ema_warmup_steps": 100,
    "rho": "auto",
}
DEMO_IMAGES = {"train_images": 640, "val_images": 80, "image_size": 160}
SHOWN = 4  # validation images in the pictures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the training that the command line asks for, and leave pictures of what came of it."""
    recipe = parse_recipe(
        arguments,
        program="train_rtdetrv4.py",
        description="Train RT-DETRv4 with a foundation model as teacher; without --data, on images drawn for it.",
        demo=DEMO,
    )
    if recipe.data is None:
        data = write_toy_dataset(recipe.output / "data", seed=recipe.seed, **DEMO_IMAGES)
        recipe = recipe.model_copy(update={"data": data})
    with assemble(recipe) as trainer:
        samples = [trainer.val_data[index] for index in range(min(SHOWN, len(trainer.val_data)))]
        images = torch.stack([image for image, _ in samples]).to(trainer.engine.device)
        # What a resumed run knows of its beginning is gone: the picture then shows the map at the resumption.
        before = _maps(trainer, images)
        figures = trainer.fit()
        after, found = _maps(trainer, images), _detect(trainer, images)  # weights in shards need every process
        if trainer.engine.is_main:
            if before is not None and after is not None:
                sheet = save_maps(images, before, after, recipe.output / "maps.png")
                trainer.monitor.say(f"maps of teacher, student before and student after: {sheet}")
            names = trainer.model.class_names or []
            trainer.monitor.say(
                f"detections: {save_detections(images, found, names, recipe.output / 'predictions.png')}"
            )
            shipped = recipe.output / PRETRAINED
            trainer.monitor.say(f"AP {figures['AP']:.3f}, AP50 {figures['AP50']:.3f}; trained detector: {shipped}")
            write_report(recipe.output)  # once more, now with the pictures


def _maps(trainer: Trainer, images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the projected student maps and the teacher's; None without a teacher."""
    return None if trainer.distiller is None else next(iter(trainer.distiller.aligned_maps(images).values()))


@torch.no_grad()
def _detect(trainer: Trainer, images: Tensor) -> list[dict[str, Tensor]]:
    """Return what the averaged model detects in the images."""
    height, width = images.shape[-2:]
    with trainer.engine.whole(trainer.average.model) as model:
        return postprocess(model(images), [(height, width)] * len(images))


def save_maps(images: Tensor, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], path: Path) -> Path:
    """Write images, teacher maps and projected student maps, all in the teacher's principal components."""
    basis = fit_pca(after[1])
    columns = {"teacher": after[1], "student before": before[0], "student after": after[0]}
    return save_sheet(
        path, {"image": list(images), **{name: pca_maps(maps, basis=basis) for name, maps in columns.items()}}
    )


def save_detections(images: Tensor, detections: list[dict[str, Tensor]], names: list[str], path: Path) -> Path:
    """Write the images with what was detected in them."""
    pixels = VF.to_dtype(images.cpu(), torch.uint8, scale=True)
    drawn = [
        draw_detections(image, {key: value.cpu() for key, value in found.items()}, names)
        for image, found in zip(pixels, detections, strict=True)
    ]
    return save_grid(path, drawn)


if __name__ == "__main__":
    try:
        main()
    except DistillError as error:
        if isinstance(error, Interrupted):
            if str(error):
                print(error, file=sys.stderr)
            raise SystemExit(error.exit_status) from None
        raise SystemExit(f"error: {error}") from None
