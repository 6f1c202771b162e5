"""One input size drives training, the teacher's grid, evaluation, and what is saved; it need not be square."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_run import register_tiny_teacher, tiny_recipe
from torch import Tensor, nn

from detectors.pretrained import from_pretrained
from detectors.training import Trainer, assemble, load_checkpoint

SIZE = (64, 96)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upright and wide pictures of several sizes, with two boxes in each but the last."""
    register_tiny_teacher()
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    sizes = [(50, 90), (90, 50), (64, 64), (120, 40), (70, 80), (30, 110)]  # (height, width)
    images, boxes = [], []
    for index, (height, width) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"images/{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": height, "width": width})
        if index < len(sizes) - 1:
            for category, bbox in (
                (5, [2, 3, width // 2, height // 4]),
                (9, [9, height // 2, width // 3, height // 3]),
            ):
                boxes.append({"image_id": index, "category_id": category, "bbox": bbox})
    content = {
        "images": images,
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, start=1)],
        "categories": [{"id": 5, "name": "upper"}, {"id": 9, "name": "lower"}],
    }
    for split in ("train", "val"):
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


class Oracle(nn.Module):
    """Answers with the objects of the validation images, in their order, and notes the sizes that it is given."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.targets = iter([trainer.val_data[index][1] for index in range(len(trainer.val_data))])
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.sizes.add(tuple(images.shape[2:]))
        logits, boxes = torch.full((len(images), 2, 2), -10.0), torch.full((len(images), 2, 4), 0.1)
        for image in range(len(images)):
            target: dict[str, Any] = next(self.targets)
            for query, label in enumerate(target["labels"]):
                logits[image, query, label], boxes[image, query] = 10, target["boxes"][query]
        return {"pred_logits": logits, "pred_boxes": boxes}


def test_a_run_on_images_that_are_not_square(pictures: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(pictures, tmp_path, input_size=SIZE, batch_size=3, epochs=2)
    with assemble(recipe) as trainer:
        assert trainer.distiller is not None
        seen: list[tuple[int, ...]] = []
        trainer.model.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape[2:])))
        figures = trainer.fit()
        assert set(seen) == {SIZE}
        images = torch.rand(2, 3, *SIZE)
        ((student, teacher),) = trainer.distiller.aligned_maps(images).values()
        assert student.shape == teacher.shape == (2, 16, 2, 3)
    assert figures["semantic_loss"] > 0
    assert 0 <= figures["AP"] <= 1
    loaded = load_checkpoint(tmp_path / "checkpoints" / "epoch_0001")
    assert trainer.model.spec.input_size == loaded.spec.input_size == SIZE
    assert from_pretrained(tmp_path / "pretrained").spec.input_size == SIZE


def test_evaluation_measures_in_the_pixels_of_the_files(pictures: Path, tmp_path: Path) -> None:
    with assemble(tiny_recipe(pictures, tmp_path, input_size=SIZE, batch_size=4, teacher="none")) as trainer:
        trainer.average.model = oracle = Oracle(trainer)
        assert trainer.evaluate()["AP"] == pytest.approx(1)
    assert oracle.sizes == {SIZE}
