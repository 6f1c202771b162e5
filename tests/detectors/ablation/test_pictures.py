from __future__ import annotations

from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from detectors.ablation.pictures import Example, detection_pictures, feature_picture

BOXES = torch.tensor([[10.0, 10.0, 60.0, 60.0], [70.0, 20.0, 110.0, 70.0]])
NAMES = ("off", "vit+gam")


def seen(*which: int, label: int | None = None, score: float = 0.9) -> dict[str, Tensor]:
    labels = torch.tensor([which_one if label is None else label for which_one in which], dtype=torch.int64)
    return {"scores": torch.full((len(which),), score), "labels": labels, "boxes": BOXES[list(which)]}


def example(first: dict[str, Tensor], second: dict[str, Tensor]) -> Example:
    image = torch.full((3, 80, 120), 128, dtype=torch.uint8)
    return Example(image, {"labels": torch.tensor([0, 1]), "boxes": BOXES}, first, second)


def decoded(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


def test_features_stand_beside_their_images() -> None:
    torch.manual_seed(0)
    images = [torch.rand(3, 32, 64) for _ in range(2)]
    picture = feature_picture(images, {"teacher": torch.randn(2, 16, 4, 8), "off": torch.randn(2, 8, 4, 8)})
    ((_, content),) = picture.panels
    width, height = decoded(content).size
    assert width > 3 * 200
    assert height > 2 * 100
    assert "image, teacher, off" in picture.caption


def test_every_kind_of_change_is_shown_with_what_it_is() -> None:
    examples = [
        example(seen(0), seen(0, 1)),
        example(seen(0, 1), seen(0)),
        example(seen(0), seen(0)),
        example(seen(), seen(0, label=1)),
    ]
    pictures = detection_pictures(examples, NAMES, ("king", "ace"), 0.4)
    assert [picture.title for picture in pictures] == [
        "Newly found by vit+gam: ace", "No longer found by vit+gam: ace", "Newly wrong in vit+gam: ace",
    ]  # fmt: skip
    assert "Of all 8 validation objects, 1 are found only by vit+gam and 1 only by off" in pictures[0].caption
    assert "1 wrong detections are made only by vit+gam, 0 only by off" in pictures[0].caption
    assert [name for name, _ in pictures[0].panels] == ["off", "vit+gam", "annotation"]


def test_boxes_are_drawn_where_they_are_in_the_enlarged_image() -> None:
    picture, *_ = detection_pictures([example(seen(), seen(0))], NAMES, ("king", "ace"), 0.4)
    plain, drawn, annotated = (decoded(content).convert("RGB") for _, content in picture.panels)
    assert plain.size == (560, 373)
    factor = 560 / 120
    left_edge = round(10 * factor), round(40 * factor)
    for image, changed in ((plain, False), (drawn, True), (annotated, True)):
        pixel = image.getpixel(left_edge)
        assert isinstance(pixel, tuple)
        assert (max(abs(value - 128) for value in pixel) > 40) is changed


def test_images_with_the_most_changes_come_first_and_two_are_enough() -> None:
    examples = [example(seen(), seen(0)), example(seen(), seen(0, 1)), example(seen(), seen(1))]
    titles = [picture.title for picture in detection_pictures(examples, NAMES, ("king", "ace"), 0.4)]
    assert titles == ["Newly found by vit+gam: king, ace", "Newly found by vit+gam: king"]


def test_detectors_that_agree_have_no_pictures() -> None:
    assert detection_pictures([example(seen(0), seen(0))], NAMES, ("king", "ace"), 0.4) == []
