from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detectors.postprocess import postprocess
from vfmdistill.errors import InputError


def outputs() -> dict[str, Tensor]:
    """Two images, three queries, two classes."""
    logits = torch.tensor([[[0.0, -1.0], [3.0, 1.0], [-2.0, -3.0]], [[5.0, 4.0], [-5.0, -5.0], [-6.0, -6.0]]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.25, 0.75, 0.5, 0.5], [0.9, 0.1, 0.4, 0.2]])
    return {"pred_logits": logits, "pred_boxes": boxes.expand(2, -1, -1)}


def test_best_pairs_of_query_and_class_in_pixels() -> None:
    first, second = postprocess(outputs(), sizes=[(100, 200), (10, 10)], top_k=3)
    torch.testing.assert_close(first["scores"], torch.tensor([3.0, 1.0, 0.0]).sigmoid())
    assert first["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(
        first["boxes"], torch.tensor([[0.0, 50, 100, 100], [0, 50, 100, 100], [80, 30, 120, 70]])
    )
    assert second["labels"].tolist()[:2] == [0, 1]
    torch.testing.assert_close(second["boxes"][0], torch.tensor([4.0, 3, 6, 7]))


def test_boxes_are_not_clipped() -> None:
    every = postprocess(outputs(), sizes=[(10, 10)] * 2)[0]
    torch.testing.assert_close(every["boxes"][every["labels"] == 0][2], torch.tensor([7.0, 0, 11, 2]))


def test_there_are_never_more_than_query_and_class_pairs() -> None:
    for detections in postprocess(outputs(), sizes=[(10, 10)] * 2, top_k=300):
        assert {name: tuple(value.shape) for name, value in detections.items()} == {
            "scores": (6,), "labels": (6,), "boxes": (6, 4),
        }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2]
)
def test_precision(given: torch.dtype, expected: torch.dtype) -> None:
    converted = {name: value.to(given) for name, value in outputs().items()}
    detections = postprocess(converted, sizes=[(10, 10)] * 2)[0]
    assert (detections["scores"].dtype, detections["boxes"].dtype) == (expected, expected)
    assert detections["labels"].dtype == torch.int64


def test_keeps_no_gradient_and_no_part_of_its_input() -> None:
    given = {name: value.clone().requires_grad_() for name, value in outputs().items()}
    before = given["pred_boxes"].detach().clone()
    detections = postprocess(given, sizes=[(10, 10)] * 2)
    assert not any(value.requires_grad for detection in detections for value in detection.values())
    assert torch.equal(given["pred_boxes"], before)


@pytest.mark.parametrize("tensor", [torch.tensor([[100, 200], [10, 10]]), [torch.tensor([100, 200]), (10, 10)]])
def test_sizes_may_be_tensors(tensor: Any) -> None:
    for ours, expected in zip(
        postprocess(outputs(), tensor), postprocess(outputs(), [(100, 200), (10, 10)]), strict=True
    ):
        assert torch.equal(ours["boxes"], expected["boxes"])


@pytest.mark.parametrize("sizes", [[480, 640], [(480, 640, 3)] * 2, ["ab", "cd"]])
def test_sizes_of_another_form_are_refused(sizes: Any) -> None:
    with pytest.raises(InputError, match=r"a size is \(height, width\) .*; got"):
        postprocess(outputs(), sizes)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="1 sizes for 2 images"):
        postprocess(outputs(), sizes=[(10, 10)])
    with pytest.raises(InputError, match="top_k must be at least 1, got 0"):
        postprocess(outputs(), sizes=[(10, 10)] * 2, top_k=0)
