"""Predictor: pictures in, named detections out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from detectors.detections import Detections
from detectors.input_size import check_input_size
from detectors.opening import open_detector
from detectors.pixels import Picture, is_one_picture, to_input
from detectors.postprocess import postprocess
from vfmdistill.errors import InputError

if TYPE_CHECKING:
    from detectors.detector import Detector

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """Finds objects in pictures of any size, resized as evaluation does.

    >>> predictor = Predictor("runs/train")
    >>> found = predictor("street.jpg")
    >>> found.names, found.scores, found.boxes
    >>> predictor.draw("street.jpg", found).save("drawn.jpg")

    Args:
        model: a detector, or what names one: see `open_detector`.
        device: where to compute; asking for one that is not there is an error. None: where a given detector is; for a
            folder, the GPU if there is one, otherwise the CPU.
        input_size: (height, width) that pictures are resized to, without keeping the aspect ratio, or one number for a
            square. None: the detector's own, `model.spec.input_size`.
        threshold: lowest score of a detection.
        top_k: most detections in a picture.
        batch_size: pictures that are looked at together.
        precision: of the network's forward pass, as of a training run's; boxes and scores are float32 in any case.
        deploy: use a re-parameterised copy, which is faster and finds the same. Otherwise the given detector itself is
            used, which has to be in eval mode, and is moved to `device`.

    Attributes:
        model: the network that is used.
        class_names: the name of each class index; "class 3" and so on where the detector knows none.
        category_ids: the data set's id of each class index, or None where the detector knows none.

    Raises:
        InputError: a device that is not there, or a number out of range.
        WeightsError: the weights cannot be read.
    """

    def __init__(
        self,
        model: Detector | str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        input_size: int | Sequence[int] | None = None,
        threshold: float = 0.5,
        top_k: int = 300,
        batch_size: int = 8,
        precision: Precision = "fp32",
        deploy: bool = True,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}; expected a score from 0 to 1.")
        if top_k < 1 or batch_size < 1:
            raise InputError(f"top_k is {top_k} and batch_size {batch_size}; expected 1 or more.")
        if precision not in ("fp32", *_DTYPES):
            raise InputError(f"precision is {precision!r}; expected 'fp32', 'bf16' or 'fp16'.")
        detector = open_detector(model)
        if device is None and detector is model:
            device = next(detector.parameters()).device
        self.device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if precision == "fp16" and self.device.type == "cpu":
            raise InputError("precision 'fp16' needs a GPU, and this predictor is on the CPU; take 'bf16' or 'fp32'.")
        if deploy:
            from detectors.deploy import deploy as deployed

            detector = deployed(detector)
        elif detector.training:
            raise InputError("the detector is in training mode: call .eval() before, or leave deploy=True.")
        self.model = detector.to(self.device)
        self.input_size = check_input_size(detector.spec.input_size if input_size is None else input_size)
        self.threshold, self.top_k, self.batch_size, self.precision = threshold, top_k, batch_size, precision
        self.category_ids = detector.category_ids
        self.class_names = detector.class_names or [f"class {index}" for index in range(detector.num_classes)]

    @overload
    def __call__(self, pictures: Picture) -> Detections: ...  # type: ignore[overload-overlap]  # a str is iterable

    @overload
    def __call__(self, pictures: Iterable[Picture]) -> list[Detections]: ...

    def __call__(self, pictures: Picture | Iterable[Picture]) -> Detections | list[Detections]:
        """Find the objects in one picture, or in each of several.

        Args:
            pictures: a path, a Pillow image, an array (H, W, 3) or (H, W) of uint8, RGB or grey, or a tensor (3, H, W),
                uint8 or floating point in [0, 1]; or several, of one kind or of many. Files and Pillow images are
                turned upright, as their EXIF orientation says, and boxes refer to the upright picture.

        Returns:
            The detections, or for several pictures a list of them in the same order.

        Raises:
            InputError: a picture cannot be read or is none, or the network's answer is not finite.
        """
        if is_one_picture(pictures):
            return self._detect([to_input(pictures, self.input_size)])[0]  # type: ignore[arg-type]
        return list(self.stream(pictures))  # type: ignore[arg-type]

    def stream(self, pictures: Iterable[Picture]) -> Iterator[Detections]:
        """Yield the detections of each picture, reading no more than a batch ahead.

        Args, errors: those of a call.
        """
        numbered = enumerate(pictures)
        with ThreadPoolExecutor(min(self.batch_size, os.cpu_count() or 1)) as pool:
            while batch := list(islice(numbered, self.batch_size)):
                yield from self._detect(list(pool.map(self._prepare_numbered, batch)))

    def draw(self, picture: Picture, detections: Detections) -> Image.Image:
        """Return a picture with its detections drawn on it; see `Detections.draw`."""
        return detections.draw(picture)

    def _prepare_numbered(self, item: tuple[int, Picture]) -> tuple[Tensor, tuple[int, int]]:
        number, picture = item
        try:
            return to_input(picture, self.input_size)
        except InputError as error:
            raise InputError(f"picture {number}, counted from 0: {error}") from error

    @torch.no_grad()
    def _detect(self, prepared: Sequence[tuple[Tensor, tuple[int, int]]]) -> list[Detections]:
        weights = next(self.model.parameters())
        images = torch.stack([image for image, _ in prepared]).to(weights.device, weights.dtype)
        sizes = [size for _, size in prepared]
        dtype = _DTYPES.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = self.model(images)
        found = []
        for answer, size in zip(postprocess(outputs, sizes, self.top_k), sizes, strict=True):
            scores, labels, boxes = (answer[key].cpu() for key in ("scores", "labels", "boxes"))
            if not (scores.isfinite().all() and boxes.isfinite().all()):
                raise InputError(
                    f"the network's answer in {self.precision} is not finite: its weights are not sound, or the "
                    "numbers are too large for the precision, and fp32 may do."
                )
            found.append(
                Detections(scores.float(), labels, boxes.float(), size, self.class_names, self.category_ids).filter(
                    self.threshold
                )
            )
        return found


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that works.

    Raises:
        InputError: there is no such device on this machine.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # What is missing decides the kind: RuntimeError for a driver, AssertionError for a build without it.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here: {reason}") from None
    return found
