"""Write a detector as an ONNX file, checked against PyTorch.

    python examples/export.py --model runs/train --output model.onnx
    python examples/export.py --model detector --input-size 480,832 --precision fp16 --images photographs/a.jpg
    python examples/export.py --model rtdetrv4_s --checkpoint RTv4-S-hgnet.pth --no-postprocess --no-dynamic-batch

The file takes `images` (N, 3, H, W), float32, RGB in [0, 1], and `sizes` (N, 2), int64, height and width before
resizing; it puts out `scores` (N, K), `labels` (N, K) and `boxes` (N, K, 4), xyxy in pixels. With --no-postprocess it
takes `images` and puts out `pred_logits` (N, Q, C) and `pred_boxes` (N, Q, 4), cxcywh in [0, 1]. Class names, category
ids, input size and licence are in its metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from detectors.catalog import CATALOG
from detectors.checkpoints import load_reference_checkpoint
from detectors.command_line import parse_options, plain_console
from detectors.detector import Detector
from detectors.export import ExportReport, Precision, export_onnx
from detectors.factory import build
from detectors.input_size import InputSize
from detectors.opening import open_detector
from vfmdistill import DistillError
from vfmdistill.errors import InputError


class Options(BaseModel):
    """The command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(
        description="a folder of save_pretrained, a checkpoint of a run, or a run's output folder; with --checkpoint "
        "one of detectors.list_models()"
    )
    checkpoint: Path | None = Field(None, description="weights of the authors, or a folder of transformers")
    num_classes: int = Field(80, ge=1, description="classes of --checkpoint")
    output: Path = Field(Path("model.onnx"), description="the file to write")
    input_size: InputSize | None = Field(
        None, description="height,width of the images; one number for a square; None: the detector's own"
    )
    dynamic_batch: bool = Field(True, description="take any number of images at once, not just one")
    postprocess: bool = Field(True, description="put out scored boxes in pixels, not the network's own outputs")
    top_k: int = Field(300, ge=1, description="most detections in an image")
    precision: Precision = Field("fp32", description="of the weights; boxes are float32 in any case")
    images: list[Path] = Field([], description="pictures to check the file on; none: two that come with the package")

    def open(self) -> Detector:
        """Return the detector that the options name."""
        if self.checkpoint is None:
            if self.model in CATALOG and not Path(self.model).exists():
                raise InputError(f"{self.model} is a model without weights: name those, too, by --checkpoint.")
            return open_detector(self.model)
        detector = build(self.model, self.num_classes)
        load_reference_checkpoint(detector, self.checkpoint)
        return detector


def main(arguments: Sequence[str] | None = None) -> ExportReport:
    """Do what the command line asks for, and say what came of it."""
    options = parse_options(
        Options,
        arguments,
        program="export.py",
        description="Write a detector as an ONNX file, checked against PyTorch.",
    )
    console = plain_console()
    detector = options.open()
    with console.status("exporting"):
        report = export_onnx(
            detector,
            options.output,
            options.input_size,
            options.dynamic_batch,
            options.postprocess,
            top_k=options.top_k,
            precision=options.precision,
            images=options.images or None,
        )
    console.print(table(report))
    return report


def table(report: ExportReport) -> Table:
    """Return a report as a table."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    height, width = report.input_size
    batch = "any number of" if report.dynamic_batch else "1"
    undecided = f" ({report.undecided} more say nothing, because rounding decides)" if report.undecided else ""
    differences = ", ".join(f"{name} {value:.1e}" for name, value in report.differences.items())
    for name, value in {
        "file": f"{report.path} ({report.file_size / 2**20:.1f} MiB, opset {report.opset}, {report.precision})",
        "detector": f"{report.model}, licence of the weights: {report.license or 'unknown'}",
        "takes": f"{', '.join(report.inputs)}: {batch} images of {height} × {width}",
        "gives": ", ".join(report.outputs),
        "checked": f"{report.agreement:.1%} of the answers on {report.images} pictures are PyTorch's{undecided}",
        "differences": f"{differences} at most among these",
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }.items():
        grid.add_row(name, value)
    return grid


if __name__ == "__main__":
    try:
        main()
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
