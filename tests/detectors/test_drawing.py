from pathlib import Path

import torch
from PIL import Image

from detectors.drawing import draw_detections, save_grid


def test_only_sure_detections_are_drawn() -> None:
    image = torch.zeros(3, 40, 200, dtype=torch.uint8)
    detections = {
        "scores": torch.tensor([0.9, 0.1]),
        "labels": torch.tensor([1, 0]),
        "boxes": torch.tensor([[10.0, 10.0, 30.0, 30.0], [135.0, 5.0, 155.0, 35.0]]),
    }
    drawn = draw_detections(image, detections, ["cat", "dog"])
    assert drawn[:, 10:31, 10:12].any(dim=0).all()
    assert not drawn[:, :, 130:].any()
    assert not image.any()


def test_an_image_without_detections_stays_as_it_is() -> None:
    image = torch.full((3, 8, 8), 7, dtype=torch.uint8)
    nothing = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    assert torch.equal(draw_detections(image, nothing, []), image)


def test_grid_is_a_png_of_all_images(tmp_path: Path) -> None:
    path = save_grid(tmp_path / "a" / "grid.png", [torch.zeros(3, 10, 20, dtype=torch.uint8)] * 3, columns=2, enlarge=2)
    assert Image.open(path).size == (2 * (2 * 20 + 3 * 4), 2 * (2 * 10 + 3 * 4))
