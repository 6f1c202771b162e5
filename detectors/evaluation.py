"""CocoEvaluator: COCO's figures for the detections of one split, as a whole, per class and per size."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from detectors.confusion import Confusion
from vfmdistill.errors import InputError


class Figure(NamedTuple):
    """Where one figure lies in the evaluator's arrays."""

    recall: bool
    iou: float | None
    area: str
    max_detections: int


FIGURES = {
    "AP": Figure(False, None, "all", 100),
    "AP50": Figure(False, 0.5, "all", 100),
    "AP75": Figure(False, 0.75, "all", 100),
    "AP_small": Figure(False, None, "small", 100),
    "AP_medium": Figure(False, None, "medium", 100),
    "AP_large": Figure(False, None, "large", 100),
    "AR_1": Figure(True, None, "all", 1),
    "AR_10": Figure(True, None, "all", 10),
    "AR_100": Figure(True, None, "all", 100),
    "AR_small": Figure(True, None, "small", 100),
    "AR_medium": Figure(True, None, "medium", 100),
    "AR_large": Figure(True, None, "large", 100),
}

# COCO's sizes, by the area of an object in pixels; both ends belong to a range.
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


class _Detections(NamedTuple):
    """The detections in one image: (D,) float64, (D,) int64 class indices, (D, 4) float64 xyxy in pixels."""

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]


class CocoEvaluator:
    """Collects detections and computes COCO's twelve figures with faster-coco-eval; equal to pycocotools.

    Call `process` for every batch, `gather` once where several processes evaluate, then `evaluate`. All images of the
    annotation file count; one that was never processed counts as one without detections. Crowd regions and the `area`
    of the annotations are used as COCO does.

    A figure is −1 where the ground truth has nothing to measure, as in COCO (no small objects: AP_small is −1), and
    classes without ground truth are left out of the means. With ground truth but no detections it is 0.

    Args:
        annotations: the annotation file, or its content.
        category_ids: the category id of each class index, a permutation of the file's. None: the file's ids, sorted.

    Raises:
        InputError: the file is no COCO annotation file, or `category_ids` are not those of the file.
    """

    def __init__(
        self, annotations: str | os.PathLike[str] | Mapping[str, Any], category_ids: Sequence[int] | None = None
    ) -> None:
        self._truth = _ground_truth(annotations)
        names = {entry["id"]: entry["name"] for entry in self._truth["categories"]}
        self.category_ids = sorted(names) if category_ids is None else list(category_ids)
        if len(set(names.values())) < len(names):
            raise InputError(
                f"two categories of the annotations have the same name: {sorted(names.values())}. Name each once."
            )
        if sorted(self.category_ids) != sorted(names):
            raise InputError(
                f"category ids {self.category_ids} are not those of the annotations, {sorted(names)}; "
                "take them from the data set that reads the same file."
            )
        self.class_names = [names[key] for key in self.category_ids]
        self._image_ids = {entry["id"] for entry in self._truth["images"]}
        self._processed: dict[int, _Detections] = {}
        self._accumulated: Any = None  # the library's evaluation of what was processed so far

    def __len__(self) -> int:
        """How many images were processed."""
        return len(self._processed)

    def reset(self) -> None:
        """Forget all detections."""
        self._processed, self._accumulated = {}, None

    def process(self, image_ids: Sequence[int] | Tensor, detections: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the detections in some images. An image that was processed already is passed over.

        Args:
            image_ids: N ids of the annotation file.
            detections: for each image `scores` (D,), `labels` (D,) class indices, and `boxes` (D, 4) xyxy in pixels of
                the original image, as `detectors.postprocess` returns them.

        Raises:
            InputError: an image that the annotations do not have, a label without a class, or lengths that differ.
        """
        self._accumulated = None
        keys = [int(key) for key in image_ids]
        if len(keys) != len(detections):
            raise InputError(f"{len(keys)} image ids for {len(detections)} detections; expected one for each.")
        for key, found in zip(keys, detections, strict=True):
            if key not in self._image_ids:
                raise InputError(f"image {key} is not among the {len(self._image_ids)} images of the annotations.")
            arrays = _Detections(*(_array(found[name]) for name in ("scores", "labels", "boxes")))
            labels = arrays.labels.astype(np.int64)
            if labels.size and not 0 <= labels.min() <= labels.max() < len(self.category_ids):
                raise InputError(
                    f"image {key} has labels from {labels.min()} to {labels.max()}; "
                    f"expected class indices from 0 to {len(self.category_ids) - 1}."
                )
            self._processed.setdefault(key, arrays._replace(labels=labels))

    def gather(self) -> None:
        """Merge the detections of all processes into each, every image once. All processes have to call it."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        shards: list[dict[int, _Detections]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(shards, self._processed)
        merged: dict[int, _Detections] = {}
        for shard in shards:
            merged = shard | merged
        self._processed, self._accumulated = merged, None

    def results(self) -> list[dict[str, Any]]:
        """Return the detections in COCO's results format: original category ids, boxes as [x, y, width, height]."""
        results = []
        for key in sorted(self._processed):
            scores, labels, boxes = self._processed[key]
            sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
            for score, label, box in zip(scores.tolist(), labels.tolist(), sides.tolist(), strict=True):
                results.append({"image_id": key, "category_id": self.category_ids[label], "bbox": box, "score": score})
        return results

    def evaluate(self) -> dict[str, float]:
        """Return AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_1, AR_10, AR_100, AR_small, AR_medium, AR_large."""
        evaluation = self._accumulate()
        return {name: _mean(_select(evaluation, figure)) for name, figure in FIGURES.items()}

    def per_class(self) -> dict[str, float]:
        """Return the AP of each class by its name, in the order of the class indices; −1 without ground truth."""
        return {name: figures["AP"] for name, figures in self.class_figures().items()}

    def class_figures(self) -> dict[str, dict[str, float]]:
        """Return what `evaluate` does for each class by its name, in the order of the class indices."""
        evaluation = self._accumulate()
        place = {key: index for index, key in enumerate(evaluation.params.catIds)}
        selected = {name: _select(evaluation, figure) for name, figure in FIGURES.items()}
        return {
            name: {figure: _mean(values[..., place[key]]) for figure, values in selected.items()}
            for name, key in zip(self.class_names, self.category_ids, strict=True)
        }

    def object_counts(self) -> dict[str, dict[str, int]]:
        """Return for each class how many objects the ground truth has: "all", "small", "medium", "large".

        Crowd regions are not counted. An object whose area lies on a border of two sizes counts for both, as in COCO.
        """
        counts = {key: dict.fromkeys(SIZES, 0) for key in self.category_ids}
        for entry in self._truth["annotations"]:
            for size, (low, high) in SIZES.items():
                counts[entry["category_id"]][size] += not entry["iscrowd"] and low <= entry["area"] <= high
        return {name: counts[key] for name, key in zip(self.class_names, self.category_ids, strict=True)}

    def confusion(self, threshold: float = 0.5, iou: float = 0.5) -> Confusion:
        """Return which classes were taken for which, in all images of the annotations; arguments as of `Confusion`."""
        label_of = {key: index for index, key in enumerate(self.category_ids)}
        objects: dict[int, list[tuple[int, list[float]]]] = {key: [] for key in self._image_ids}
        crowds: dict[int, list[list[float]]] = {key: [] for key in self._image_ids}
        for entry in self._truth["annotations"]:
            left, top, width, height = entry["bbox"]
            box = [left, top, left + width, top + height]
            if entry["iscrowd"]:
                crowds[entry["image_id"]].append(box)
            else:
                objects[entry["image_id"]].append((label_of[entry["category_id"]], box))
        confusion = Confusion(self.class_names, threshold, iou)
        nothing = _Detections(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
        for key, found in objects.items():
            truth = {
                "labels": torch.tensor([label for label, _ in found], dtype=torch.int64),
                "boxes": torch.tensor([box for _, box in found], dtype=torch.float64).view(-1, 4),
            }
            detections = {
                name: torch.from_numpy(values) for name, values in self._processed.get(key, nothing)._asdict().items()
            }
            confusion.add(truth, detections, torch.tensor(crowds[key], dtype=torch.float64).view(-1, 4))
        return confusion

    def _accumulate(self) -> Any:
        """Return the library's evaluation; its figures lie in arrays."""
        from faster_coco_eval import COCO, COCOeval_faster

        if self._accumulated is not None:
            return self._accumulated

        detections = [
            {**result, "id": index, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
            for index, result in enumerate(self.results(), start=1)
        ]
        truth = COCO(self._truth, print_function=_silence)
        found = COCO({**self._truth, "annotations": detections}, print_function=_silence)
        evaluation = COCOeval_faster(truth, found, iouType="bbox", print_function=_silence)
        evaluation.evaluate()
        evaluation.accumulate()
        self._accumulated = evaluation
        return evaluation


def _ground_truth(annotations: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return what the evaluation needs of an annotation file, in new dicts that it may write to."""
    try:
        content = annotations if isinstance(annotations, Mapping) else json.loads(Path(annotations).read_bytes())
        images = [{"id": entry["id"]} for entry in content["images"]]
        categories = [{"id": entry["id"], "name": entry["name"]} for entry in content["categories"]]
        image_ids, category_ids = ({entry["id"] for entry in entries} for entries in (images, categories))
        boxes = [
            {
                # Numbered anew from 1: an id of 0 would read as "unmatched".
                "id": number,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": entry["bbox"],
                "area": entry.get("area", entry["bbox"][2] * entry["bbox"][3]),
                "iscrowd": int(entry.get("iscrowd", 0)),
            }
            for number, entry in enumerate(content["annotations"], start=1)
            # The library passes over the others too.
            if entry["image_id"] in image_ids and entry["category_id"] in category_ids
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        source = "the annotations" if isinstance(annotations, Mapping) else os.fspath(annotations)
        raise InputError(f"{source} cannot be read as COCO annotations: {type(error).__name__}: {error}") from error
    return {"images": images, "annotations": boxes, "categories": categories}


def _array(values: Tensor) -> NDArray[Any]:
    return values.detach().cpu().double().numpy()


def _select(evaluation: Any, figure: Figure) -> NDArray[np.float64]:
    """Return precision (T, R, K) or recall (T, K) of one figure: IoU thresholds, recall thresholds, categories."""
    params = evaluation.params
    area = params.areaRngLbl.index(figure.area)
    limit = params.maxDets.index(figure.max_detections)
    values = np.asarray(evaluation.eval["recall" if figure.recall else "precision"])[..., area, limit]
    return values if figure.iou is None else values[np.isclose(params.iouThrs, figure.iou)]


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


def _silence(*_: object) -> None:
    """Take the place of the library's progress messages."""
