"""Judge a detector that nearly knows the answers on each of several processes, and write what the first one got.

noisy_oracle.py DATA OUTPUT, alone or under torchrun.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tiny_run import tiny_recipe
from torch import Tensor, nn

from detectors.data.coco import CocoDataset
from detectors.data.layout import locate_split
from detectors.data.transforms import eval_transform
from detectors.training.engine import Engine
from detectors.training.validation import Validation


class NoisyOracle(nn.Module):
    """Recognises every image and answers with its objects, moved, scored and now and then misnamed at random."""

    def __init__(self, data: CocoDataset) -> None:
        super().__init__()
        self.answers: dict[bytes, tuple[Tensor, Tensor]] = {}
        generator = torch.Generator().manual_seed(3)
        for index in range(len(data)):
            image, target = data[index]
            logits, boxes = torch.full((10, len(data.class_names)), -9.0), torch.full((10, 4), 0.1)
            for query, label in enumerate(target["labels"][:10]):
                wrong = torch.rand((), generator=generator) < 0.2
                logits[query, (label + wrong) % logits.shape[1]] = 4 * torch.randn((), generator=generator)
                boxes[query] = target["boxes"][query] + 0.02 * torch.randn(4, generator=generator)
            self.answers[image.numpy().tobytes()] = logits, boxes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits, boxes = zip(*(self.answers[image.numpy().tobytes()] for image in images), strict=True)
        return {"pred_logits": torch.stack(logits), "pred_boxes": torch.stack(boxes)}


def main(data: str, output: str) -> None:
    recipe = tiny_recipe(data, output, batch_size=4)
    engine = Engine(recipe)
    images = CocoDataset(*locate_split(data, "val"))
    images.transform = eval_transform(recipe.input_size)
    model = NoisyOracle(images)
    seen: list[int] = []
    validation = Validation(images, recipe, engine)
    process = validation.evaluator.process

    def noted(image_ids: list[int], detections: object) -> None:
        seen.extend(image_ids)
        process(image_ids, detections)  # type: ignore[arg-type]

    validation.evaluator.process = noted  # type: ignore[method-assign, assignment]
    figures = validation(model, lambda: None)
    Path(output, f"{engine.rank}.json").write_text(json.dumps({"figures": figures, "seen": seen}))


if __name__ == "__main__":
    main(*sys.argv[1:])
