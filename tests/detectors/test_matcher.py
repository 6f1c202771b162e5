from __future__ import annotations

import numpy as np
import pytest
import torch

from detectors.losses.boxes import iou_and_giou
from detectors.losses.finite import NonFiniteError
from detectors.losses.matcher import HungarianMatcher, Matches, union
from vfmdistill.errors import InputError

COUNTS = (3, 0, 5)


def example(layers: int = 2, queries: int = 8, counts: tuple[int, ...] = COUNTS):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(layers, len(counts), queries, 4, generator=generator, dtype=torch.float64)
    boxes = 0.1 + 0.5 * torch.rand(layers, len(counts), queries, 4, generator=generator, dtype=torch.float64)
    targets = [
        {
            "labels": torch.randint(0, 4, (count,), generator=generator),
            "boxes": 0.1 + 0.5 * torch.rand(count, 4, generator=generator, dtype=torch.float64),
        }
        for count in counts
    ]
    return logits, boxes, targets


def total_cost(logits, boxes, target, queries, objects) -> float:
    """The cost of an assignment in one image of one layer, pair by pair, from the definition."""
    total = 0.0
    for query, position in zip(queries, objects, strict=True):
        p = logits[query, target["labels"][position]].sigmoid()
        focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
        box, wanted = boxes[query], target["boxes"][position]
        total += (2 * focal + 5 * (box - wanted).abs().sum() - 2 * iou_and_giou(box, wanted)[1]).item()
    return total


def test_perfect_queries_find_their_objects():
    logits, boxes, targets = example()
    order = {0: [6, 1, 3], 2: [0, 7, 2, 5, 4]}
    for layer in range(2):
        for image, places in order.items():
            boxes[layer, image, places] = targets[image]["boxes"]
            logits[layer, image] = -8
            logits[layer, image, places, targets[image]["labels"]] = 8
    matches = HungarianMatcher()(logits, boxes, targets)
    assert matches.query.shape == (2, 8)
    for layer in range(2):
        found = {
            (image, query): target for image, query, target in zip(*(column[layer] for column in matches), strict=True)
        }
        expected = {(0, 6): 0, (0, 1): 1, (0, 3): 2} | {(2, q): 3 + i for i, q in enumerate(order[2])}
        assert found == expected


def test_no_swap_is_cheaper():
    """The assignment is optimal: no two objects gain by exchanging their queries, nor one by taking a free query."""
    logits, boxes, targets = example()
    matches = HungarianMatcher()(logits, boxes, targets)
    for layer in range(2):
        for image, first in ((0, 0), (2, 3)):
            chosen = matches.image[layer] == image
            queries, objects = matches.query[layer, chosen], matches.target[layer, chosen] - first
            arguments = logits[layer, image], boxes[layer, image], targets[image]
            best = total_cost(*arguments, queries, objects)
            for i in range(len(queries)):
                for other in range(8):
                    changed = queries.copy()
                    changed[queries == other] = queries[i]
                    changed[i] = other
                    assert total_cost(*arguments, changed, objects) >= best - 1e-12


def test_layers_and_images_do_not_influence_each_other():
    logits, boxes, targets = example()
    together = HungarianMatcher()(logits, boxes, targets)
    alone = HungarianMatcher()(logits[1:, 2:], boxes[1:, 2:], targets[2:])
    chosen = together.image[1] == 2
    assert together.query[1, chosen].tolist() == alone.query[0].tolist()
    assert (together.target[1, chosen] - 3).tolist() == alone.target[0].tolist()


def test_more_objects_than_queries():
    logits, boxes, targets = example(queries=4, counts=(2, 7))
    matches = HungarianMatcher()(logits, boxes, targets)
    assert matches.query.shape == (2, 2 + 4)
    for layer in range(2):
        chosen = matches.image[layer] == 1
        assert sorted(matches.query[layer, chosen].tolist()) == [0, 1, 2, 3]
        assert len(set(matches.target[layer, chosen].tolist())) == 4
        assert matches.target[layer, chosen].min() >= 2


def test_no_objects_at_all():
    logits, boxes, targets = example(counts=(0, 0))
    matches = HungarianMatcher()(logits, boxes, targets)
    assert matches.query.shape == (2, 0)
    assert union(matches).query.shape == (1, 0)


@pytest.mark.parametrize(
    ("value", "where"), [(float("nan"), "boxes"), (float("inf"), "boxes"), (float("nan"), "logits")]
)
def test_non_finite_predictions_are_named(value, where):
    logits, boxes, targets = example()
    (boxes if where == "boxes" else logits)[1, 2, 4] = value
    with pytest.raises(NonFiniteError, match=r"of output main in image 2 of the batch"):
        HungarianMatcher()(logits, boxes, targets, names=["aux_0", "main"])


def test_every_image_with_non_finite_predictions_is_named_by_its_id():
    logits, boxes, targets = example()
    boxes[:, 0] = float("nan")
    boxes[0, 2, 7] = float("inf")
    targets = [{**target, "image_id": torch.tensor(139 + i)} for i, target in enumerate(targets)]
    with pytest.raises(NonFiniteError, match=r"of outputs aux_0, main in images 0 \(id 139\), 2 \(id 141\) of the"):
        HungarianMatcher()(logits, boxes, targets, names=["aux_0", "main"])


def test_non_finite_target_boxes_are_named():
    logits, boxes, targets = example()
    targets[0]["boxes"][1, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"of outputs layer 0, layer 1 in image 0 of the batch"):
        HungarianMatcher()(logits, boxes, targets)


def test_as_many_targets_as_images():
    logits, boxes, targets = example()
    with pytest.raises(InputError, match="2 targets for 3 images"):
        HungarianMatcher()(logits, boxes, targets[:2])


def matches_of(*layers: list[tuple[int, int, int]]) -> Matches:
    return Matches(*np.array(layers).transpose(2, 0, 1))


def pairs_of(matches: Matches) -> list[tuple[int, ...]]:
    return list(zip(*(column[0].tolist() for column in matches), strict=True))


def test_union_takes_every_pair_once():
    joined = union(matches_of([(0, 5, 0), (1, 2, 1)], [(0, 5, 0), (1, 3, 1)], [(0, 4, 0), (1, 2, 1)]))
    assert pairs_of(joined) == [(0, 4, 0), (0, 5, 0), (1, 2, 1), (1, 3, 1)]


def test_union_keeps_the_object_most_layers_chose():
    joined = union(matches_of([(0, 5, 0), (0, 6, 1)], [(0, 5, 1), (0, 6, 0)], [(0, 5, 1), (0, 7, 0)]))
    assert pairs_of(joined) == [(0, 5, 1), (0, 6, 0), (0, 7, 0)]  # query 6 has a tie: the first object


def test_union_tells_images_apart():
    """The same query number in two images is two queries."""
    joined = union(matches_of([(0, 5, 0), (1, 5, 1)], [(0, 5, 0), (1, 5, 1)]))
    assert pairs_of(joined) == [(0, 5, 0), (1, 5, 1)]
