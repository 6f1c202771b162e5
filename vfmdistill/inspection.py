"""inspect: which modules of a student can be tapped, and which one `attach` would take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters import StudentAdapter, find_adapter
from vfmdistill.errors import CaptureError, InputError
from vfmdistill.probing import check_student, checked_probe, probe_images, unwrapped
from vfmdistill.tap_choice import choose_tap
from vfmdistill.tap_findings import Finding, find_maps, read_tap


@dataclass(frozen=True)
class Candidate:
    """A module of a student whose output can be read as a map.

    Attributes:
        path: the module's dotted path in the student, "" for the student itself.
        type: the name of its class.
        shape: of the tensor that it puts out for the probe, as it is.
        stride: pixels of the image from one row of the map to the next.
        layout: "NCHW", "NHWC" or "tokens".
        params: how many numbers the module can learn, frozen ones included.
        note: what else to know of it, "" for nothing.
    """

    path: str
    type: str
    shape: tuple[int, ...]
    stride: float
    layout: str
    params: int
    note: str = ""


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found; printing it shows a table.

    Attributes:
        candidates: in the order in which the modules finish.
        chosen: those that `attach` takes where no tap is given: several only if an adapter says so, none if no module
            fits.
        reason: why these, or why none.
        input_size: (height, width) of the probe.
    """

    candidates: tuple[Candidate, ...]
    chosen: tuple[Candidate, ...]
    reason: str
    input_size: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it; ``chosen`` are paths."""
        return {**asdict(self), "chosen": [candidate.path for candidate in self.chosen]}

    def __str__(self) -> str:
        from vfmdistill.inspection_table import inspection_as_text

        return inspection_as_text(self)


def inspect(student: nn.Module, input_size: int | tuple[int, int] = 224, *, probe: Tensor | None = None) -> Inspection:
    """List the modules of a student that can be tapped, and mark what `attach` takes where no tap is given.

    That is the tap that an adapter knows for the student, else the deepest map of stride 16 to 32. Several modules
    give such a map: taken is the last to finish (so of a block and the layers in it the block) that has trainable
    weights and is a stage, not the way there from the image. The student runs in eval mode, once on the probe and once
    on a part of it, by which a map is told from what merely has its shape; it is left bit-identical.

    >>> from torchvision.models import resnet18
    >>> vfmdistill.inspect(resnet18()).chosen[0].path
    'layer4'

    Args:
        student: any network that takes images (N, 3, H, W); wrapped by DDP or torch.compile, paths are those inside.
        input_size: of the probe, one image of zeros, in pixels: the length of a side, or (height, width).
        probe: a batch (N, 3, H, W) to run instead, at best like those that the student will see.

    Raises:
        InputError: the student fails on the probe, or an argument does not fit.
    """
    student = unwrapped(student)
    check_student(student)
    images = probe_images(student, input_size) if probe is None else checked_probe(probe)
    try:
        return inspect_with(student, images)
    except InputError as error:
        cause = error.__cause__
        if cause is None:
            raise  # what an adapter says
        raise InputError(
            f"the student failed on a probe of shape {tuple(images.shape)} and type {images.dtype} "
            f"({type(cause).__name__}: {cause}). Give the size that it takes as input_size=, or a batch that it takes "
            "as probe=."
        ) from cause


def inspect_with(student: nn.Module, images: Tensor) -> Inspection:
    """Do what `inspect` does, for a student without wrappers, and a batch that it takes.

    Raises:
        InputError: the student fails on the images.
    """
    outputs, findings = find_maps(student, images)
    adapter = find_adapter(student)
    if adapter is None:
        taken, reason = choose_tap(student, findings, images)
        chosen = [] if taken is None else [taken.path]
    else:
        chosen, reason = _taps_of(adapter, student, images, outputs, findings)
    candidates = {finding.path: _candidate(finding, images) for finding in findings.values()}
    height, width = images.shape[-2:]
    return Inspection(tuple(candidates.values()), tuple(candidates[path] for path in chosen), reason, (height, width))


def _taps_of(
    adapter: StudentAdapter,
    student: nn.Module,
    images: Tensor,
    outputs: dict[str, Any],
    findings: dict[str, Finding],
) -> tuple[list[str], str]:
    """Return the paths of an adapter's taps and why there are none; what the adapter reads goes to the findings."""
    own: object = adapter
    name = "the student" if own is student else f"the adapter {type(adapter).__name__}"
    chosen = []
    for tap in adapter.taps(student):
        if tap.path not in outputs:
            return [], f"{name} names {tap.path!r}, which does not run with the student."
        try:
            finding, _ = read_tap(adapter, tap, outputs[tap.path], images)
        except CaptureError as error:
            return [], f"{name} names {tap.path!r} and cannot read it: {error}"
        known = findings.get(tap.path)
        findings[tap.path] = replace(finding, calls=known.calls) if known else finding
        chosen.append(tap.path)
    if not chosen:
        return [], f"{name} names none."
    return chosen, f"{name} names {'it' if len(chosen) == 1 else 'them'}."


def _candidate(finding: Finding, images: Tensor) -> Candidate:
    rows, columns = finding.grid
    notes = [f"in {finding.place}"] if finding.place else []
    more = finding.shape[1] - rows * columns if finding.layout == "tokens" else 0
    if more:
        notes.append(f"{more} more token{'s' * (more > 1)}")
    if finding.calls > 1:
        notes.append(f"called {finding.calls} times, the last counts")
    if finding.fixed:
        notes.append("does not follow the image size")
    if finding.passed_on:
        notes.append("passed on from another module")
    if finding.predicts:
        notes.append("predictions, by what the student returns")
    if not any(parameter.requires_grad for parameter in finding.module.parameters()):
        notes.append("nothing to train")
    return Candidate(
        path=finding.path,
        type=type(finding.module).__name__,
        shape=finding.shape,
        stride=images.shape[-2] / rows,
        layout=finding.layout,
        params=sum(parameter.numel() for parameter in finding.module.parameters()),
        note="; ".join(notes),
    )
