from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from detectors.data.coco import CocoDataset, sample_seed
from detectors.data.collate import collate
from detectors.data.problems import DatasetError
from detectors.data.transforms import train_transform
from vfmdistill.errors import InputError


class Draw:
    """A transform that writes what it drew into the target."""

    def __call__(self, image: tv_tensors.Image, target: dict[str, Any]) -> tuple[tv_tensors.Image, dict[str, Any]]:
        return tv_tensors.Image(image.float()), {**target, "drawn": torch.rand(2)}


def test_category_ids_become_contiguous_labels(tmp_path: Path, coco_files: Any) -> None:
    dataset = CocoDataset(*coco_files.write(tmp_path))
    assert dataset.category_ids == [7, 13, 90]
    assert dataset.class_names == ["cat", "dog", "zebra"]
    assert [dataset[i][1]["labels"].tolist() for i in range(len(dataset))] == [[2], [0], [1]]


def test_class_names_decide_the_order(tmp_path: Path, coco_files: Any) -> None:
    dataset = CocoDataset(*coco_files.write(tmp_path), class_names=["zebra", "cat", "dog"])
    assert dataset.category_ids == [90, 7, 13]
    assert [dataset[i][1]["labels"].item() for i in range(3)] == [0, 1, 2]


def test_class_names_that_do_not_match_are_all_named(tmp_path: Path, coco_files: Any) -> None:
    with pytest.raises(DatasetError) as caught:
        CocoDataset(*coco_files.write(tmp_path), class_names=["cat", "horse", "cow"])
    assert "expected but not in the file: horse, cow" in str(caught.value)
    assert "in the file but not expected: zebra, dog" in str(caught.value)


def test_item_before_a_transform(tmp_path: Path, coco_files: Any) -> None:
    split = coco_files.write(tmp_path)
    image, target = CocoDataset(*split)[1]
    expected = np.asarray(Image.open(split.images_dir / "1.png")).transpose(2, 0, 1)
    assert isinstance(image, tv_tensors.Image)
    assert torch.equal(image.as_subclass(torch.Tensor), torch.from_numpy(expected.copy()))
    assert target["boxes"].format is tv_tensors.BoundingBoxFormat.XYXY
    assert target["boxes"].canvas_size == (30, 40)
    assert target["boxes"].tolist() == [[3.0, 3.0, 13.0, 15.0]]
    assert target["image_id"].shape == ()
    assert target["image_id"].item() == 11
    assert target["orig_size"].tolist() == [30, 40]
    assert {key: target[key].dtype for key in ("labels", "image_id", "orig_size")} == dict.fromkeys(
        ("labels", "image_id", "orig_size"), torch.int64
    )


def test_boxes_are_grouped_by_image_and_clipped_and_crowds_left_out(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content()
    annotations["annotations"] = [
        {"id": 1, "image_id": 12, "category_id": 7, "bbox": [1, 1, 5, 5]},
        {"id": 2, "image_id": 10, "category_id": 7, "bbox": [-0.5, 0, 41.0, 30.9]},
        {"id": 3, "image_id": 12, "category_id": 90, "bbox": [2, 2, 5, 5], "iscrowd": 1},
        {"id": 4, "image_id": 12, "category_id": 13, "bbox": [3, 3, 5, 5], "iscrowd": 0},
    ]
    dataset = CocoDataset(*coco_files.write(tmp_path, annotations))
    targets = [dataset[i][1] for i in range(3)]
    assert targets[0]["boxes"].tolist() == [[0.0, 0.0, 40.0, 30.0]]
    assert targets[1]["boxes"].shape == (0, 4)
    assert targets[1]["labels"].shape == (0,)
    assert targets[2]["boxes"].tolist() == [[1.0, 1.0, 6.0, 6.0], [3.0, 3.0, 8.0, 8.0]]
    assert targets[2]["labels"].tolist() == [0, 1]


def test_invalid_boxes_are_dropped_on_request_and_counted(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content()
    annotations["annotations"] += [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [5, 5, 0, 4]},
        {"id": 2, "image_id": 11, "category_id": 7, "bbox": [30, 5, 20, 4]},
    ]
    split = coco_files.write(tmp_path, annotations)
    with pytest.raises(DatasetError, match="--invalid-boxes drop"):
        CocoDataset(*split)
    dataset = CocoDataset(*split, invalid_boxes="drop")
    assert dataset.dropped_boxes == 2
    assert [len(dataset[i][1]["labels"]) for i in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_common_pixel_format_becomes_rgb(tmp_path: Path, coco_files: Any, mode: str) -> None:
    split = coco_files.write(tmp_path)
    suffix = "jpg" if mode == "CMYK" else "png"
    source = Image.open(split.images_dir / "0.png").convert("L").convert(mode)
    source.save(split.images_dir / f"other.{suffix}")
    annotations = coco_files.content()
    annotations["images"][0]["file_name"] = f"other.{suffix}"
    image, _ = CocoDataset(*coco_files.write(tmp_path, annotations))[0]
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.uint8
    grey = torch.from_numpy(np.array(source.convert("L"))).float()
    assert (image.float().mean(0) - grey).abs().mean() < (12 if mode == "CMYK" else 1)


def test_the_ground_truth_is_the_content_of_the_file(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content() | {"licenses": [{"id": 1}]}
    annotations["annotations"][0] |= {"iscrowd": 1, "area": 3.5, "segmentation": {"counts": "x"}}
    annotations["annotations"][1]["bbox"] = [5, 5, 0, 4]
    split = coco_files.write(tmp_path, annotations)
    assert CocoDataset(*split, invalid_boxes="drop").ground_truth() == annotations
    dataset = CocoDataset(*split, invalid_boxes="drop")
    (split.images_dir / "2.png").unlink()
    with pytest.raises(InputError, match=r"2\.png cannot be read"):
        dataset.ground_truth()


def test_the_digest_follows_from_what_is_trained_on(tmp_path: Path, coco_files: Any) -> None:
    def digest(change: Any = None, **options: Any) -> str:
        annotations = coco_files.content()
        if change is not None:
            change(annotations)
        return CocoDataset(*coco_files.write(tmp_path / "a", annotations), **options).digest

    first = digest()
    assert len(first) == 64
    assert digest(lambda content: content.update(info={"year": 2020})) == first
    assert digest(lambda content: content["annotations"].reverse()) == first
    assert CocoDataset(*coco_files.write(tmp_path / "b"), seed=3).digest == first
    others = [
        digest(class_names=["dog", "cat", "zebra"]),
        digest(lambda content: content["categories"][0].update(name="lynx")),
        digest(lambda content: content["annotations"][0].update(category_id=7)),
        digest(lambda content: content["annotations"][0].update(image_id=11)),
        digest(lambda content: content["annotations"][0].update(bbox=[2, 3, 10, 12.5])),
        digest(lambda content: content["images"][0].update(file_name="./0.png")),
        digest(lambda content: content["images"][0].update(width=41)),
        digest(lambda content: content["annotations"].pop()),
        digest(lambda content: content["images"].append({"id": 1, "file_name": "z.png", "width": 9, "height": 9})),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_an_image_that_vanished_is_named(tmp_path: Path, coco_files: Any) -> None:
    split = coco_files.write(tmp_path)
    dataset = CocoDataset(*split)
    (split.images_dir / "2.png").unlink()
    with pytest.raises(InputError, match=r"2\.png"):
        dataset[2]


def test_missing_image_folder_and_negative_seed(tmp_path: Path, coco_files: Any) -> None:
    split = coco_files.write(tmp_path)
    with pytest.raises(InputError, match="image folder"):
        CocoDataset(tmp_path / "nowhere", split.annotation_file)
    with pytest.raises(InputError, match="seed is -1"):
        CocoDataset(*split, seed=-1)


def test_draws_follow_from_seed_epoch_and_index_alone(tmp_path: Path, coco_files: Any) -> None:
    split = coco_files.write(tmp_path)
    dataset = CocoDataset(*split, Draw(), seed=3)
    first = [dataset[i][1]["drawn"] for i in range(3)]
    again = [dataset[i][1]["drawn"] for i in (2, 1, 0)][::-1]
    assert all(map(torch.equal, first, again))
    dataset.set_epoch(1)
    later = [dataset[i][1]["drawn"] for i in range(3)]
    other = [CocoDataset(*split, Draw(), seed=4)[i][1]["drawn"] for i in range(3)]
    assert len({tuple(drawn.tolist()) for drawn in first + later + other}) == 9


def test_draws_leave_the_callers_random_state_alone(tmp_path: Path, coco_files: Any) -> None:
    dataset = CocoDataset(*coco_files.write(tmp_path), Draw())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[0]
    assert torch.equal(torch.rand(3), expected)


def test_sample_seeds_differ_and_stay_what_they_are() -> None:
    seeds = {sample_seed(*key) for key in np.ndindex(5, 6, 50)}
    assert len(seeds) == 5 * 6 * 50
    # numpy keeps SeedSequence's numbers the same for ever; resumed runs rely on them.
    assert sample_seed(0, 0, 0) == 15793235383387715774
    assert sample_seed(3, 2, 1) == 8809326337898877326


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_what_one_process_draws_in_every_epoch(tmp_path: Path, coco_files: Any, persistent: bool) -> None:
    dataset = CocoDataset(*coco_files.write(tmp_path, images=6), train_transform((32, 64)), seed=5)
    loader: Callable[..., Any] = DataLoader(
        dataset, batch_size=2, num_workers=2, persistent_workers=persistent, collate_fn=collate
    )
    pictures = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        alone = torch.stack([dataset[i][0] for i in range(6)])
        batches = list(loader)
        assert torch.equal(torch.cat([images for images, _ in batches]), alone)
        for (_, targets), start in zip(batches, (0, 2, 4), strict=True):
            for offset, target in enumerate(targets):
                assert torch.equal(target["boxes"], dataset[start + offset][1]["boxes"])
        pictures.append(alone)
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[1], pictures[2])
