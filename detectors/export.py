"""export_onnx: a detector as an ONNX file that was seen to give the same answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from detectors.deploy import copy_for_inference, deploy
from detectors.input_size import check_input_size
from vfmdistill.errors import InputError
from vfmdistill.version import __version__

if TYPE_CHECKING:
    from detectors.detector import Detector
    from detectors.pixels import Picture

Precision = Literal["fp32", "fp16"]
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
PHOTOGRAPHS = Path(__file__).parent / "photographs"


@dataclass(frozen=True)
class ExportReport:
    """What `export_onnx` wrote, and how it was checked."""

    path: Path
    model: str
    """Name of the detector."""
    input_size: tuple[int, int]
    """Height and width of the images."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_batch: bool
    precision: Precision
    """Of the weights. Inputs, boxes, scores and outputs are float32 in any case."""
    opset: int
    file_size: int
    """In bytes."""
    license: str | None
    """Licence of the weights, if known."""
    images: int
    """Number of pictures that onnxruntime and PyTorch were compared on."""
    undecided: int
    """Number of further pictures that say nothing: the answers differ, but rounding alone is enough for that."""
    agreement: float
    """Share of the queries, or of the detections, that both found alike."""
    differences: dict[str, float]
    """Largest differences among these: of scores, of boxes relative to the image, and of logits if they are put out."""
    versions: dict[str, str]
    """Of the packages that had a part in it."""


def export_onnx(
    model: Detector,
    path: str | os.PathLike[str],
    input_size: int | Sequence[int] | None = None,
    dynamic_batch: bool = True,
    postprocess: bool = True,
    *,
    top_k: int = 300,
    precision: Precision = "fp32",
    images: Picture | Iterable[Picture] | None = None,
) -> ExportReport:
    """Write a deployed copy of a detector as an ONNX file, and check it against the detector.

    The file takes `images` (N, 3, H, W), float32, RGB in [0, 1], resized without keeping the aspect ratio, and `sizes`
    (N, 2), int64, height and width of each image before. It puts out `scores` (N, K), best first, `labels` (N, K),
    int64, and `boxes` (N, K, 4), xyxy in pixels of the image before resizing, as `detectors.postprocess` does. Class
    names, category ids, input size and licence are in its metadata: `detectors.onnx_graph.read_metadata`.

    Before it gets its name, onnxruntime runs the file on pictures one by one and in a batch, and the answers are
    compared with those of the given detector in float32. An older file of that name is replaced only then.

    Args:
        model: the detector, deployed or not, in any mode, on any device; it stays as it is.
        path: the file; folders are made if need be.
        input_size: (height, width) of the images, or one number for a square. None: `model.spec.input_size`.
        dynamic_batch: N may be any number; otherwise it is 1.
        postprocess: False leaves `sizes` out and puts out `pred_logits` (N, Q, C) and `pred_boxes` (N, Q, 4), cxcywh in
            [0, 1].
        top_k: detections per image, at most.
        precision: "fp16" stores and runs the network in half precision. Inputs, outputs, boxes, sampling and
            post-processing stay in float32. The weights' own precision does not matter. How much is lost depends on the
            network and is in the report; half of the answers have to be the same.
        images: pictures to check on: paths, Pillow images, arrays or tensors; see `detectors.pixels.to_pixels`. Some
            from the detector's own domain are best. None: two photographs that come with the package.

    Raises:
        InputError: a package is missing, an argument does not fit or a picture cannot be read.
        ExportError: torch cannot export the detector, or the file's answers are others than the detector's. No file
            is left.
    """
    _require_packages()
    from detectors.onnx_check import LIMITS, compare, prepare
    from detectors.onnx_graph import OPSET, OnnxDetector, write_onnx

    target = Path(path).expanduser()
    if target.is_dir():
        raise InputError(f"{target} is a folder; give a file, for example {target / 'model.onnx'}.")
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; expected 'fp32' or 'fp16'.")
    if top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}.")
    reference = OnnxDetector(copy_for_inference(model).to("cpu", torch.float32), top_k if postprocess else None)
    size = check_input_size(model.spec.input_size if input_size is None else input_size)
    pictures = prepare(sorted(PHOTOGRAPHS.glob("*.jpg")) if images is None else images, size)

    dtype = torch.float16 if precision == "fp16" else torch.float32
    module = OnnxDetector(deploy(reference.model).to(dtype), reference.top_k)
    metadata = _describe(model, size, postprocess=postprocess, top_k=top_k, precision=precision)
    target.parent.mkdir(parents=True, exist_ok=True)
    unchecked = target.with_name(f".{target.name}.{os.getpid()}.unchecked")
    try:
        write_onnx(module, size, dynamic_batch, metadata, unchecked)
        agreement = compare(unchecked, reference, pictures, dynamic_batch=dynamic_batch, limits=LIMITS[precision])
        os.replace(unchecked, target)
    finally:
        unchecked.unlink(missing_ok=True)
    return ExportReport(
        path=target,
        model=model.spec.name,
        input_size=size,
        inputs=module.input_names,
        outputs=module.output_names,
        dynamic_batch=dynamic_batch,
        precision=precision,
        opset=OPSET,
        file_size=target.stat().st_size,
        license=model.license,
        images=agreement.images,
        undecided=agreement.undecided,
        agreement=agreement.share,
        differences=agreement.largest,
        versions=_versions(),
    )


def _describe(
    model: Detector, input_size: tuple[int, int], *, postprocess: bool, top_k: int, precision: Precision
) -> dict[str, Any]:
    """Return what an exported file says about itself."""
    return {
        "format": "vfmdistill-onnx",
        "version": 1,
        "model": model.spec.name,
        "class_names": model.class_names,
        "category_ids": model.category_ids,
        "license": model.license,
        "input_size": list(input_size),
        "input_range": "RGB in [0, 1], resized to input_size without keeping the aspect ratio",
        "postprocess": postprocess,
        "top_k": top_k if postprocess else None,
        "precision": precision,
        "producer": f"vfmdistill {__version__}",
    }


def _require_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"exporting needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'vfmdistill[export]'."
        )


def _versions() -> dict[str, str]:
    return {"vfmdistill": __version__, **{name: import_module(name).__version__ for name in ("torch", *PACKAGES)}}
