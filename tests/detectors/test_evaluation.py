from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from detectors.evaluation import FIGURES, CocoEvaluator
from vfmdistill.errors import InputError

CATEGORY_IDS = [90, 7, 13]


def ground_truth(images: int = 30, seed: int = 0) -> dict[str, Any]:
    """Boxes of three classes and all sizes; no dog anywhere, some crowds, and areas smaller than their boxes."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(rng.integers(0, 6)):
            x, y, width, height = (rng.random(4) * [300, 300, 200, 200] + [0, 0, 4, 4]).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + image,
                    "category_id": int(rng.choice([90, 7])),
                    "bbox": [x, y, width, height],
                    "area": width * height * 0.7,
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    return {
        "images": [{"id": 10 + image, "width": 512, "height": 512} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cat"}, {"id": 13, "name": "dog"}, {"id": 90, "name": "zebra"}],
    }


def random_detections(truth: dict[str, Any], seed: int = 0) -> dict[int, dict[str, Tensor]]:
    """For each image, its true boxes shifted a little or a lot, and some boxes out of the air."""
    rng = np.random.default_rng(seed)
    found = {}
    for image in truth["images"]:
        boxes = [a["bbox"] for a in truth["annotations"] if a["image_id"] == image["id"] for _ in range(2)]
        boxes += (rng.random((int(rng.integers(0, 8)), 4)) * 200 + 5).tolist()
        xywh = np.array(boxes).reshape(-1, 4)
        xywh = xywh + rng.normal(size=xywh.shape) * rng.choice([1.0, 8.0], size=(len(xywh), 1))
        xywh[:, 2:] = np.maximum(xywh[:, 2:], 1)
        found[image["id"]] = {
            "scores": torch.from_numpy(rng.random(len(xywh))).float(),
            "labels": torch.from_numpy(rng.integers(0, 3, len(xywh))),
            "boxes": torch.from_numpy(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)).float(),
        }
    return found


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = json.loads(json.dumps(truth))
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools(seed: int) -> None:
    truth = ground_truth(seed=seed)
    detections = random_detections(truth, seed)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    evaluator.process(list(detections), list(detections.values()))
    reference = by_pycocotools(truth, evaluator.results())
    figures = evaluator.evaluate()
    assert list(figures) == list(FIGURES)
    np.testing.assert_allclose(list(figures.values()), reference.stats, rtol=0, atol=1e-6)
    assert 0.02 < figures["AP"] < figures["AP50"] < 1

    precision = reference.eval["precision"][:, :, :, 0, 2]
    per_class = evaluator.per_class()
    assert list(per_class) == ["zebra", "cat", "dog"]
    for name, column in (("cat", 0), ("zebra", 2)):
        assert per_class[name] == pytest.approx(precision[:, :, column].mean(), abs=1e-6)
    assert per_class["dog"] == -1.0


def test_figures_of_classes_and_sizes_equal_pycocotools() -> None:
    truth = ground_truth()
    detections = random_detections(truth)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    evaluator.process(list(detections), list(detections.values()))
    reference = by_pycocotools(truth, evaluator.results())
    params = reference.params
    by_class = evaluator.class_figures()
    assert list(by_class) == ["zebra", "cat", "dog"]
    for name, key in zip(by_class, CATEGORY_IDS, strict=True):
        assert list(by_class[name]) == list(FIGURES)
        for figure, (recall, iou, area, limit) in FIGURES.items():
            values = reference.eval["recall" if recall else "precision"][
                ..., params.catIds.index(key), params.areaRngLbl.index(area), params.maxDets.index(limit)
            ]
            values = values if iou is None else values[np.isclose(params.iouThrs, iou)]
            expected = values[values > -1].mean() if (values > -1).any() else -1.0
            assert by_class[name][figure] == pytest.approx(expected, abs=1e-6), (name, figure)
    assert by_class["zebra"]["AP_small"] != by_class["cat"]["AP_small"]
    assert set(by_class["dog"].values()) == {-1.0}


def test_counts_objects_of_each_size_as_coco_does() -> None:
    truth = ground_truth()
    truth["annotations"][0].update(area=32.0**2, category_id=13, iscrowd=0)
    truth["annotations"][1].update(area=96.0**2, category_id=13, iscrowd=0)
    truth["annotations"][2].update(category_id=13, iscrowd=1)
    counts = CocoEvaluator(truth, CATEGORY_IDS).object_counts()
    assert list(counts) == ["zebra", "cat", "dog"]
    assert counts["dog"] == {"all": 2, "small": 1, "medium": 2, "large": 1}  # a border belongs to both sides
    cats = [a for a in truth["annotations"] if a["category_id"] == 7 and not a["iscrowd"]]
    assert counts["cat"]["all"] == len(cats)
    assert counts["cat"]["large"] == sum(a["area"] >= 96**2 for a in cats)


def test_annotations_of_unknown_images_and_categories_are_passed_over_as_by_pycocotools() -> None:
    truth = ground_truth()
    detections = random_detections(truth)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    evaluator.process(list(detections), list(detections.values()))
    expected, counts = evaluator.evaluate(), evaluator.object_counts()
    strange = [{**truth["annotations"][0], "id": 900, "image_id": 5}, {**truth["annotations"][0], "id": 901}]
    strange[1]["category_id"] = 8
    truth["annotations"] += strange
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    evaluator.process(list(detections), list(detections.values()))
    assert evaluator.evaluate() == expected
    assert evaluator.object_counts() == counts
    reference = by_pycocotools(truth, evaluator.results())
    np.testing.assert_allclose(list(expected.values()), reference.stats, rtol=0, atol=1e-6)


def test_confusion_counts_every_image_and_every_object() -> None:
    truth = ground_truth()
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    found = exact(truth, CATEGORY_IDS)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    evaluator.process(list(found), list(found.values()))
    counts = evaluator.object_counts()
    confusion = evaluator.confusion()
    assert confusion.class_names == ["zebra", "cat", "dog"]
    assert confusion.matrix.tolist() == torch.diag(torch.tensor([*(counts[c]["all"] for c in counts), 0])).tolist()
    # With two classes exchanged, and only one half of the images looked at.
    evaluator.reset()
    half = list(found)[::2]
    for key in half:
        found[key]["labels"] = 1 - found[key]["labels"]
    evaluator.process(half, [found[key] for key in half])
    matrix = evaluator.confusion().matrix
    seen = {c: sum(a["category_id"] == c and a["image_id"] in half for a in truth["annotations"]) for c in (90, 7)}
    zebras, cats = counts["zebra"]["all"], counts["cat"]["all"]
    assert matrix[0].tolist() == [0, seen[90], 0, zebras - seen[90]]
    assert matrix[1].tolist() == [seen[7], 0, 0, cats - seen[7]]
    assert not matrix[2:].any()


def test_detections_in_crowds_are_not_made_up() -> None:
    truth = ground_truth()
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 1
    found = exact(truth, CATEGORY_IDS)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    evaluator.process(list(found), list(found.values()))
    assert not evaluator.confusion().matrix.any()


def test_new_detections_change_the_figures() -> None:
    truth = ground_truth()
    detections = random_detections(truth)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    figures = []
    for keys in (list(detections)[:15], list(detections)[15:]):
        evaluator.process(keys, [detections[key] for key in keys])
        figures.append(evaluator.evaluate())
    assert figures[0] != figures[1]
    evaluator.reset()
    assert set(evaluator.evaluate().values()) == {0.0}


def test_results_have_the_original_category_ids_and_corner_and_size() -> None:
    evaluator = CocoEvaluator(ground_truth(), CATEGORY_IDS)
    evaluator.process(
        torch.tensor([12]),
        [
            {
                "scores": torch.tensor([0.5, 0.25]),
                "labels": torch.tensor([2, 0]),
                "boxes": torch.tensor([[1.0, 2, 4, 8]] * 2),
            }
        ],
    )
    assert evaluator.results() == [
        {"image_id": 12, "category_id": 13, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5},
        {"image_id": 12, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.25},
    ]
    json.dumps(evaluator.results())


def exact(truth: dict[str, Any], category_ids: list[int]) -> dict[int, dict[str, Tensor]]:
    found = {}
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        x, y, width, height = torch.tensor([a["bbox"] for a in mine], dtype=torch.float64).reshape(-1, 4).unbind(1)
        found[image["id"]] = {
            "scores": torch.ones(len(mine)),
            "labels": torch.tensor([category_ids.index(a["category_id"]) for a in mine], dtype=torch.int64),
            "boxes": torch.stack([x, y, x + width, y + height], 1),
        }
    return found


def test_perfect_detections_score_one_and_an_annotation_id_of_zero_does_no_harm() -> None:
    truth = ground_truth()
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
        annotation["id"] -= 1
    found = exact(truth, CATEGORY_IDS)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    evaluator.process(list(found), list(found.values()))
    assert evaluator.evaluate()["AP"] == pytest.approx(1.0)
    # The same labels read in the order of the ids are wrong: the order of `category_ids` is what counts.
    evaluator = CocoEvaluator(truth)
    evaluator.process(list(found), list(found.values()))
    assert evaluator.evaluate()["AP"] < 0.2


def test_no_detections_give_zero_and_no_ground_truth_minus_one() -> None:
    truth = ground_truth()
    evaluator = CocoEvaluator(truth)
    figures = evaluator.evaluate()
    assert set(figures.values()) == {0.0}
    empty = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    evaluator.process([10, 11], [empty, empty])
    assert len(evaluator) == 2
    assert evaluator.evaluate() == figures
    large = {**truth, "annotations": [a for a in truth["annotations"] if a["area"] > 96**2]}
    assert CocoEvaluator(large).evaluate()["AP_small"] == -1.0
    assert set(CocoEvaluator({**truth, "annotations": []}).evaluate().values()) == {-1.0}


def test_is_silent_and_leaves_the_given_annotations_alone(capfd: pytest.CaptureFixture[str]) -> None:
    truth = ground_truth()
    before = json.dumps(truth)
    detections = random_detections(truth)
    evaluator = CocoEvaluator(truth)
    evaluator.process(list(detections), list(detections.values()))
    assert evaluator.evaluate() == evaluator.evaluate()
    assert json.dumps(truth) == before
    assert capfd.readouterr() == ("", "")


def test_reads_files_and_files_without_area_and_crowd(tmp_path: Path) -> None:
    truth = ground_truth()
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    detections = random_detections(truth)
    figures = []
    for keep in (True, False):
        if not keep:
            for annotation in truth["annotations"]:
                del annotation["area"], annotation["iscrowd"]
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        evaluator = CocoEvaluator(tmp_path / "truth.json")
        evaluator.process(list(detections), list(detections.values()))
        figures.append(evaluator.evaluate())
    assert figures[0] == figures[1]


def test_an_image_counts_once_and_reset_forgets() -> None:
    truth = ground_truth()
    detections = random_detections(truth)
    evaluator = CocoEvaluator(truth)
    evaluator.process(list(detections), list(detections.values()))
    expected = evaluator.evaluate()
    others = random_detections(truth, seed=1)
    evaluator.process(list(others), list(others.values()))
    assert len(evaluator) == 30
    assert evaluator.evaluate() == expected
    evaluator.reset()
    assert len(evaluator) == 0
    assert evaluator.results() == []


def test_bad_input(tmp_path: Path) -> None:
    truth = ground_truth()
    with pytest.raises(InputError, match=r"\[7, 13\] are not those of the annotations, \[7, 13, 90\]"):
        CocoEvaluator(truth, [7, 13])
    twins = {**truth, "categories": [{**entry, "name": "cat"} for entry in truth["categories"]]}
    with pytest.raises(InputError, match="two categories of the annotations have the same name"):
        CocoEvaluator(twins)
    with pytest.raises(InputError, match="KeyError: 'images'"):
        CocoEvaluator({})
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read"):
        CocoEvaluator(tmp_path / "nowhere.json")
    evaluator = CocoEvaluator(truth)
    one = {"scores": torch.ones(1), "labels": torch.tensor([3]), "boxes": torch.ones(1, 4)}
    with pytest.raises(InputError, match="labels from 3 to 3; expected class indices from 0 to 2"):
        evaluator.process([10], [one])
    with pytest.raises(InputError, match="image 9 is not among the 30 images"):
        evaluator.process([9], [one])
    with pytest.raises(InputError, match="2 image ids for 1 detections"):
        evaluator.process([10, 11], [one])


def _evaluate_shard(rank: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    truth = ground_truth(images=7)
    detections = random_detections(truth)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    # 7 images on 2 processes: a sampler pads to 8, so the first is read by both.
    mine = [*detections, next(iter(detections))][rank::2]
    evaluator.process(mine, [detections[key] for key in mine])
    evaluator.gather()
    Path(f"{out}{rank}.json").write_text(json.dumps([len(evaluator), evaluator.evaluate(), evaluator.results()]))
    dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo")
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "meet"), str(tmp_path / "rank"))
    torch.multiprocessing.spawn(_evaluate_shard, args=arguments, nprocs=2)  # type: ignore[no-untyped-call]
    truth = ground_truth(images=7)
    detections = random_detections(truth)
    evaluator = CocoEvaluator(truth, CATEGORY_IDS)
    evaluator.process(list(detections), list(detections.values()))
    evaluator.gather()
    expected = [7, evaluator.evaluate(), evaluator.results()]
    for rank in range(2):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == expected
