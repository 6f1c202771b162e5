from pathlib import Path

import torch
from PIL import Image

from detectors.drawing import COLOURS, draw_detections, save_grid

DETECTIONS = {
    "scores": torch.tensor([0.9, 0.1]),
    "labels": torch.tensor([1, 0]),
    "boxes": torch.tensor([[10.0, 20.0, 30.0, 35.0], [135.0, 5.0, 155.0, 35.0]]),
}


def rgb(colour: str) -> torch.Tensor:
    return torch.tensor(bytearray.fromhex(colour[1:]), dtype=torch.uint8)[:, None]


def test_only_sure_detections_are_drawn() -> None:
    image = torch.zeros(3, 40, 200, dtype=torch.uint8)
    drawn = draw_detections(image, DETECTIONS, ["cat", "dog"])
    assert (drawn[:, 20:36, 10:12].flatten(1) == rgb(COLOURS[1])).all()
    assert (drawn[:, 34:36, 10:31].flatten(1) == rgb(COLOURS[1])).all()
    assert not drawn[:, 22:34, 12:29].any()
    assert not drawn[:, :, 130:].any()
    assert not image.any()
    assert drawn.dtype == torch.uint8
    assert draw_detections(image, DETECTIONS, ["cat", "dog"], threshold=0.1)[:, :, 130:].any()


def test_an_image_without_detections_stays_as_it_is() -> None:
    image = torch.full((3, 8, 8), 7, dtype=torch.uint8)
    nothing = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    assert torch.equal(draw_detections(image, nothing, []), image)


def test_lines_and_letters_grow_with_the_image() -> None:
    def share(scale: int) -> float:
        image = torch.zeros(3, 400 * scale, 2000 * scale, dtype=torch.uint8)
        drawn = draw_detections(image, {**DETECTIONS, "boxes": DETECTIONS["boxes"] * 10 * scale}, ["cat", "dog"])
        return float((drawn != 0).any(0).float().mean())

    assert abs(share(2) / share(1) - 1) < 0.1


def test_the_surest_is_on_top_and_its_caption_within_the_image() -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    both = {"scores": torch.tensor([0.8, 0.9]), "labels": torch.tensor([0, 1]), "boxes": torch.zeros(2, 4)}
    both["boxes"] += torch.tensor([60.0, 0.0, 79.0, 50.0])
    drawn = draw_detections(image, both, ["a", "b"])
    assert (drawn[:, 49:51, 60:80].flatten(1) == rgb(COLOURS[1])).all()
    ground = (drawn == rgb(COLOURS[1])[..., None]).all(0)
    assert ground[:20, 20:60].any()  # to the left of the box, where there is room


def test_boxes_beyond_the_image_and_turned_inside_out_do_no_harm() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    boxes = torch.tensor([[-50.0, -50, 5e9, 5e9], [10, 10, 30, 30], [-1e9, 5, -1e8, 9], [30, 30, 20, 20]])
    detections = {"scores": torch.ones(4), "labels": torch.zeros(4, dtype=torch.int64), "boxes": boxes}
    drawn = draw_detections(image, detections, ["cat"])
    assert drawn.shape == image.shape
    assert (drawn[:, 20:31, 10:12].flatten(1) == rgb(COLOURS[0])).all()
    unseen = {
        **detections,
        "boxes": torch.tensor([[-30.0, 5, -5, 20], [5, -9, 20, -1], [60, 5, 90, 20], [5, 40, 9, 50]]),
    }
    assert not draw_detections(image, unseen, ["cat"]).any()


def test_grid_is_a_png_of_all_images(tmp_path: Path) -> None:
    path = save_grid(tmp_path / "a" / "grid.png", [torch.zeros(3, 10, 20, dtype=torch.uint8)] * 3, columns=2, enlarge=2)
    assert Image.open(path).size == (2 * (2 * 20 + 3 * 4), 2 * (2 * 10 + 3 * 4))
