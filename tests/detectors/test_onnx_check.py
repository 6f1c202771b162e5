from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_detector import tiny_detector
from torch import Tensor

from detectors.data.transforms import eval_transform
from detectors.onnx_check import LIMITS, Limits, _check_kind, _differences, prepare, rounding_decides
from detectors.onnx_graph import DETECTIONS, RAW, ExportError, OnnxDetector
from vfmdistill.errors import InputError

SIZE = torch.tensor([[100, 200]])


def raw(queries: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, queries, 3, generator=generator), torch.rand(1, queries, 4, generator=generator)]


def detections() -> list[Tensor]:
    boxes = torch.tensor([[[10.0, 10, 50, 60], [20, 20, 90, 90], [0, 0, 200, 100]]])
    return [torch.tensor([[0.9, 0.9, 0.2]]), torch.tensor([[1, 0, 2]]), boxes]


def test_pictures_are_resized_as_in_evaluation(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    one, *others = prepare(tmp_path / "a.png", (32, 64))
    assert not others
    assert (tuple(one.image.shape), one.size.tolist()) == ((1, 3, 32, 64), [[50, 70]])
    expected = eval_transform((32, 64)).transforms[0](torch.from_numpy(pixels).movedim(2, 0)) / 255
    torch.testing.assert_close(one.image[0], expected)


def test_some_pictures_are_needed() -> None:
    with pytest.raises(InputError, match="images is empty"):
        prepare([], (32, 32))


def test_queries_in_another_order_are_the_same() -> None:
    logits, boxes = raw()
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    differences = _differences([logits, boxes], [logits[:, order] + 1e-3, boxes[:, order] - 1e-5], SIZE, RAW)
    assert differences.shape == (6, 3)
    torch.testing.assert_close(differences[:, 2], torch.full((6,), 1e-3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(differences[:, 1], torch.full((6,), 1e-5, dtype=torch.float64), atol=1e-6, rtol=0)
    assert 1e-4 < differences[:, 0].max() < 2.6e-4  # the sigmoid's slope is a quarter at most


def test_one_other_query_is_seen() -> None:
    expected, found = raw(), raw()
    found[1][0, 2] += 0.5
    different = _differences(expected, found, SIZE, RAW)[:, 1] > 0.1
    assert different.tolist() == [False, False, True, False, False, False]


def test_equal_detections_may_swap_and_boxes_are_relative_to_the_image() -> None:
    scores, labels, boxes = detections()
    order = torch.tensor([1, 0, 2])
    moved = boxes[:, order] + torch.tensor([2.0, 0, 0, 0])
    differences = _differences([scores, labels, boxes], [scores, labels[:, order], moved], SIZE, DETECTIONS)
    torch.testing.assert_close(
        differences, torch.tensor([[0.0, 2 / 200, 0.0]], dtype=torch.float64).tile(3, 1), atol=1e-7, rtol=0
    )


def test_another_class_is_no_agreement() -> None:
    expected, found = detections(), detections()
    found[1][0, 0] = 2
    assert _differences(expected, found, SIZE, DETECTIONS)[:, 0].isinf().tolist() == [True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("top_k", [None, 300])
def test_rounding_decides_where_cells_score_the_same(top_k: int | None) -> None:
    model = tiny_detector()
    reference, limits = OnnxDetector(model, top_k), LIMITS["fp32"]
    (picture,) = prepare(torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)), (64, 96))
    assert not rounding_decides(reference, picture, limits)
    assert rounding_decides(reference, picture, Limits(0.0, 0.99))  # single and double precision differ by something
    head = model.decoder.selection.score_head
    head.weight[0], head.bias[0] = 0, 9  # the best score of every cell
    assert rounding_decides(reference, picture, limits)
    model.decoder.num_queries = 1000  # all cells become queries
    assert not rounding_decides(reference, picture, limits)
    model.decoder.num_queries = 20
    head.weight.zero_()  # no cell differs from any other, so that none is missed
    assert not rounding_decides(reference, picture, limits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: [tensors[0][:, :2], *tensors[1:]],
            r"scores .* torch.float32 \(1, 2\), of the detector .*\(1, 3",
        ),
        (lambda tensors: [tensors[0], tensors[1].int(), tensors[2]], "labels of the exported graph is torch.int32"),
        (lambda tensors: [tensors[0] * torch.nan, *tensors[1:]], "scores .* not all finite; the detector's own are.$"),
    ],
)
def test_another_kind_of_output_is_an_error(change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(ExportError, match=message):
        _check_kind(change(detections()), detections(), DETECTIONS)


def test_a_detector_that_is_not_finite_itself_is_told_so() -> None:
    broken = [torch.full((1, 3), torch.inf), *detections()[1:]]
    with pytest.raises(ExportError, match="the detector's own are not either"):
        _check_kind(broken, broken, DETECTIONS)
