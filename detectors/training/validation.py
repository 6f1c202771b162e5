"""Validation: the averaged model judged on the validation images, by all processes together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from detectors.data.coco import CocoDataset
from detectors.evaluation import CocoEvaluator
from detectors.postprocess import postprocess

from .engine import Engine
from .loaders import plainly, val_loader
from .recipe import Recipe


class Validation:
    """Judges models on a data set; every image is seen by one process, and none twice.

    Args:
        data: validation images; sets their transform.
        recipe: batch size, input size, workers.
        engine: devices and processes.

    Attributes:
        evaluator: holds the detections of the latest validation.
    """

    def __init__(self, data: CocoDataset, recipe: Recipe, engine: Engine) -> None:
        self._engine = engine
        self._loader = val_loader(data, recipe, engine.accelerator)
        self.evaluator = CocoEvaluator(data.ground_truth(), data.category_ids)
        # The number of batches that every process has
        self._common = len(data) // engine.world // (self._loader.batch_size or 1)

    @torch.no_grad()
    def __call__(self, model: nn.Module, pause: Callable[[], None]) -> dict[str, Any]:
        """Return COCO's twelve figures by name, and "AP_per_class", the AP of every class by name.

        Args:
            model: in eval mode; its weights may be in shards.
            pause: called between batches, equally often in every process; may raise.
        """
        self.evaluator.reset()
        with self._engine.whole(model) as whole:
            for number, (images, targets) in enumerate(plainly(self._loader)):
                outputs = whole(images.to(self._engine.device))
                sizes = [tuple(target["orig_size"].tolist()) for target in targets]
                self.evaluator.process([int(target["image_id"]) for target in targets], postprocess(outputs, sizes))
                if number < self._common:
                    pause()
        self.evaluator.gather()
        return {**self.evaluator.evaluate(), "AP_per_class": self.evaluator.per_class()}
