"""A detector's ONNX graph: what it computes, how torch writes it, and what it says about itself."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detectors.decoders.precision import at_least_float32
from detectors.postprocess import rank
from vfmdistill.errors import DistillError

if TYPE_CHECKING:
    from detectors.detector import Detector

# GridSample exists since 16, and with 20 its mode "bilinear" became "linear", which not every runtime knows. 18 is what
# torch's exporter writes without converting, and less than the latest that TensorRT 10 and OpenVINO read.
OPSET = 18
BATCH = "batch"
IMAGES, SIZES = "images", "sizes"
DETECTIONS, RAW = ("scores", "labels", "boxes"), ("pred_logits", "pred_boxes")
CHATTERING = ("torch", "torch.onnx", "onnxscript", "onnx_ir")  # loggers


class ExportError(DistillError, RuntimeError):
    """A detector could not be exported, or the exported file does not compute what the detector computes."""


class OnnxDetector(nn.Module):
    """What an exported file computes: plain tensors in and out, float32 outside the network.

    Args:
        model: in eval mode, of any precision.
        top_k: detections per image; None: the network's outputs as they are.
    """

    def __init__(self, model: Detector, top_k: int | None) -> None:
        super().__init__()
        self.model, self.top_k = model, top_k
        self.dtype = next(model.parameters()).dtype
        self.input_names = (IMAGES,) if top_k is None else (IMAGES, SIZES)
        self.output_names = RAW if top_k is None else DETECTIONS
        self.eval()

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return `pred_logits` and `pred_boxes`, or with `top_k` and `sizes` scores, labels and boxes.

        Args:
            images: RGB in [0, 1], float32, shape (N, 3, H, W).
            sizes: height and width of each image as it was before resizing, int64, shape (N, 2).
        """
        model = self.model  # not called itself: while it is traced, sizes are no numbers that could be checked
        outputs = model.decoder(model.encoder(model.backbone(images.to(self.dtype))))
        logits, boxes = at_least_float32(outputs["pred_logits"]), at_least_float32(outputs["pred_boxes"])
        if self.top_k is None or sizes is None:
            return logits, boxes
        return rank(logits, boxes, sizes, self.top_k)


@torch.no_grad()
def write_onnx(
    module: OnnxDetector, input_size: tuple[int, int], dynamic_batch: bool, metadata: Mapping[str, Any], path: Path
) -> None:
    """Write the graph of a module on the CPU, with metadata, each value as JSON.

    Raises:
        ExportError: torch's exporter fails, or writes what is no valid graph.
    """
    import onnx

    number = 2 if dynamic_batch else 1
    inputs: tuple[Tensor, ...] = (torch.zeros(number, 3, *input_size),)
    if module.top_k is not None:
        inputs += (torch.tensor([input_size] * number),)
    outputs = module(*inputs)
    try:
        with _quiet():
            _trace(module, inputs, dynamic_batch, path)
        model = onnx.load(path)
        for value, tensor in zip(model.graph.output, outputs, strict=True):
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims[1:], tensor.shape[1:], strict=True):
                dim.dim_value = size  # only the batch varies, which the older exporter does not see
        for node in model.graph.node:  # where in whose files it was traced is no one's business
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
        onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
    except OSError:
        raise
    except Exception as error:  # the exporters and the checker raise many kinds
        raise ExportError(
            f"torch {torch.__version__} could not export the detector: {type(error).__name__}: {error}"
        ) from error


def _trace(module: OnnxDetector, inputs: tuple[Tensor, ...], dynamic_batch: bool, path: Path) -> None:
    common: dict[str, Any] = {
        "input_names": module.input_names, "output_names": module.output_names, "opset_version": OPSET,
    }  # fmt: skip
    if torch.__version__ >= "2.9":  # what became the default then; before, it could not take these networks
        # Some versions set 1 apart while they trace. The graph takes it all the same.
        batch = {0: torch.export.Dim(BATCH, min=2)} if dynamic_batch else {}
        shapes = dict.fromkeys(module.input_names, batch)
        torch.onnx.export(
            module, inputs, path, **common, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False
        )
    else:
        axes = dict.fromkeys((*module.input_names, *module.output_names), {0: BATCH} if dynamic_batch else {})
        torch.onnx.export(module, inputs, path, **common, dynamo=False, dynamic_axes=axes)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return what an exported file says about itself: class names, category ids, input size, licence and more.

    A runtime gives the same where onnx is not installed, for example
    `onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map`; each value is JSON.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    return {item.key: json.loads(item.value) for item in model.metadata_props}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's messages from the user; its errors are exceptions."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        for name in CHATTERING:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield
