"""Whether an ONNX file computes what PyTorch computes: both run on pictures, and their answers are matched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detectors.onnx_graph import DETECTIONS, ExportError, OnnxDetector
from detectors.pixels import Picture, is_one_picture, to_input
from vfmdistill.errors import InputError

BATCH_CHECKED = 3


class Limits(NamedTuple):
    """When two programs agree on a picture: `share` of the answers differ by `tolerance` at most."""

    tolerance: float
    """Of scores, and of boxes relative to the image."""
    share: float


# Half precision is judged coarsely: other cells become queries, and how far rounding reaches depends on the network.
# A wrong graph agrees on next to nothing.
LIMITS = {"fp32": Limits(1e-3, 0.99), "fp16": Limits(0.05, 0.5)}


class Agreement(NamedTuple):
    """How two programs agree on some pictures."""

    share: float
    """Share of the queries, or of the detections, that both find alike."""
    largest: dict[str, float]
    """Largest differences among these: of `scores`, of `boxes` relative to the image, and of `logits` if they are
    known."""
    images: int
    """Number of pictures that this is about."""
    undecided: int
    """Number of further pictures on which the answers differ, but rounding alone is enough for that."""


class Prepared(NamedTuple):
    """A picture as the network takes it."""

    image: Tensor
    """Float32, shape (1, 3, h, w)."""
    size: Tensor
    """Height and width before resizing, shape (1, 2), int64."""


def prepare(pictures: Picture | Iterable[Picture], input_size: tuple[int, int]) -> list[Prepared]:
    """Read and resize one picture or several, as evaluation does.

    Raises:
        InputError: one cannot be read, or there is none.
    """
    prepared = []
    several: Iterable[Picture] = [pictures] if is_one_picture(pictures) else pictures  # type: ignore[list-item, assignment]
    for picture in several:
        image, size = to_input(picture, input_size)
        prepared.append(Prepared(image[None], torch.tensor([size])))
    if not prepared:
        raise InputError("images is empty; give some pictures, or None for the ones that come with the package.")
    return prepared


@torch.no_grad()
def compare(
    path: Path, reference: OnnxDetector, pictures: Sequence[Prepared], *, dynamic_batch: bool, limits: Limits
) -> Agreement:
    """Run an ONNX file and a module on the same pictures: one by one, and if the batch may vary also several at once.

    Answers may come in another order and are matched: where two score the same but for rounding, either may be first.
    Pictures on which rounding alone changes the answers say nothing and are set aside; see `rounding_decides`.

    Raises:
        ExportError: the file cannot be run, puts out something else in kind, or answers otherwise.
    """
    run = _session(path, reference)
    batches = [[index] for index in range(len(pictures))]
    if dynamic_batch:
        batches.append([index % len(pictures) for index in range(BATCH_CHECKED)])
    expected = [reference(*_inputs(reference, [picture])) for picture in pictures]
    alike: list[Tensor] = []  # rows of scores, boxes, logits; infinite where they are not the same kind of thing
    undecided = set()
    for batch in batches:
        found = run(_inputs(reference, [pictures[index] for index in batch]))
        for position, index in enumerate(batch):
            own = [tensor[position : position + 1] for tensor in found]
            _check_kind(own, expected[index], reference.output_names)
            differences = _differences(expected[index], own, pictures[index].size, reference.output_names)
            agreeing = (differences[:, :2] <= limits.tolerance).all(dim=1)
            share = float(agreeing.double().mean())
            if share >= limits.share:
                alike.append(differences)
            elif index in undecided or rounding_decides(reference, pictures[index], limits):
                undecided.add(index)
            else:
                raise ExportError(
                    f"the exported graph is wrong: on picture {index + 1} of {len(pictures)}, only {share:.1%} of its "
                    f"answers differ by {limits.tolerance:g} or less from PyTorch's, expected {limits.share:.0%}."
                )
    if len(undecided) == len(pictures):
        raise ExportError(
            "the exported graph could not be checked: its answers are others than PyTorch's, but on all of the "
            f"{len(pictures)} pictures rounding alone changes these. Give more pictures as images=."
        )
    rows = torch.cat(alike)
    agreeing = (rows[:, :2] <= limits.tolerance).all(dim=1)
    names = ("scores", "boxes") if reference.output_names == DETECTIONS else ("scores", "boxes", "logits")
    largest = dict(zip(names, rows[agreeing].amax(dim=0).tolist(), strict=False))
    return Agreement(float(agreeing.double().mean()), largest, len(pictures) - len(undecided), len(undecided))


@torch.no_grad()
def rounding_decides(reference: OnnxDetector, picture: Prepared, limits: Limits) -> bool:
    """Tell whether a module's answer on a picture depends on rounding, by running it in double precision.

    It does where rounding may turn round which of two cells becomes the last query, which all others see in their
    self-attention, or where single and double precision do not agree.
    """
    exact = OnnxDetector(copy.deepcopy(reference.model).double(), reference.top_k)
    (single, rounded), (double, logits) = (_watch_selection(module, picture) for module in (reference, exact))
    close = 2 * (rounded - logits).abs().max()  # of two cells, both may be off
    order, last = logits.amax(dim=-1).argsort(descending=True), reference.model.decoder.num_queries
    if last < len(order):
        inside, outside = logits[order[last - 1]], logits[order[last]]
        # Cells that are alike in every class, such as those at the border, are the same query.
        if inside.max() - outside.max() <= close < (inside - outside).abs().max():
            return True
    differences = _differences(double, single, picture.size, reference.output_names)
    return float((differences[:, :2] <= limits.tolerance).all(dim=1).double().mean()) < limits.share


def _watch_selection(module: OnnxDetector, picture: Prepared) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return what a module puts out, and the class logits of all cells, from which the queries are selected."""
    seen: list[Tensor] = []
    head = module.model.decoder.selection.score_head
    handle = head.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits))
    try:
        return module(*_inputs(module, [picture])), seen[0][0]
    finally:
        handle.remove()


def _session(path: Path, reference: OnnxDetector) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise ExportError(f"onnxruntime cannot read the exported graph: {error}") from error

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(reference.input_names, inputs, strict=True)}
        try:
            outputs = session.run(list(reference.output_names), feed)
        except Exception as error:
            shapes = [tuple(tensor.shape) for tensor in inputs]
            raise ExportError(f"onnxruntime fails on the exported graph for inputs {shapes}: {error}") from error
        return [torch.from_numpy(np.asarray(output)) for output in outputs]

    return run


def _inputs(module: OnnxDetector, pictures: Sequence[Prepared]) -> tuple[Tensor, ...]:
    images, sizes = (torch.cat(tensors) for tensors in zip(*pictures, strict=True))
    return (images,) if module.top_k is None else (images, sizes)


def _check_kind(found: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str]) -> None:
    for name, one, other in zip(names, found, expected, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ExportError(
                f"{name} of the exported graph is {one.dtype} {tuple(one.shape)}, of the detector {other.dtype} "
                f"{tuple(other.shape)}."
            )
        if not one.isfinite().all():
            where = "the detector's own are not either" if not other.isfinite().all() else "the detector's own are"
            raise ExportError(f"{name} of the exported graph are not all finite; {where}.")


def _differences(expected: Sequence[Tensor], found: Sequence[Tensor], size: Tensor, names: Sequence[str]) -> Tensor:
    """Return the differences of scores, relative boxes and logits, shape (rows, 3), of the best matching of rows."""
    from scipy.optimize import linear_sum_assignment

    one, other = ([tensor[0].double() for tensor in tensors] for tensors in (expected, found))
    if tuple(names) == DETECTIONS:
        scale = size[0].flip(0).tile(2)
        scores = (one[0][:, None] - other[0]).abs().masked_fill(one[1][:, None] != other[1], torch.inf)
        boxes = _distances(one[2] / scale, other[2] / scale)
        logits = torch.zeros_like(scores)
    else:
        scores = _distances(one[0].sigmoid(), other[0].sigmoid())
        boxes, logits = _distances(one[1], other[1]), _distances(one[0], other[0])
    cost = (scores + boxes).clamp(max=10)  # the assignment takes no infinity
    rows, columns = linear_sum_assignment(cost.numpy())
    return torch.stack([scores, boxes, logits], dim=-1)[rows, columns]


def _distances(one: Tensor, other: Tensor) -> Tensor:
    return torch.cdist(one, other, p=torch.inf)
