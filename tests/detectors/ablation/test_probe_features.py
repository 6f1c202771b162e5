from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_detector import tiny_detector
from torch import Tensor, nn

import detectors
from detectors.ablation.probe_features import Readout, at_centres, batches, evenly, read, tap_reader
from detectors.ablation.untrained import untrained_like
from detectors.data import CocoDataset, eval_transform, locate_split, write_toy_dataset
from vfmdistill.adapters import Tap
from vfmdistill.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=5, val_images=2, image_size=64)


def split(toy: Path, size: tuple[int, int] = (64, 96)) -> CocoDataset:
    return CocoDataset(*locate_split(toy, "train"), eval_transform(size))


def where_am_i(images: Tensor) -> Tensor:
    """A map (N, 3, H / 32, W / 32) whose cells say their row, their column, and the brightness of their image."""
    count, _, height, width = images.shape
    rows, columns = torch.meshgrid(torch.arange(height // 32), torch.arange(width // 32), indexing="ij")
    brightness = images.mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 1, *rows.shape)
    place = torch.stack([rows, columns]).float().expand(count, -1, -1, -1)
    return torch.cat([place, brightness], dim=1)


def target(labels: Sequence[int], *boxes: tuple[float, float, float, float]) -> dict[str, Tensor]:
    return {"labels": torch.tensor(labels, dtype=torch.int64), "boxes": torch.tensor(boxes).view(-1, 4)}


def test_objects_are_read_at_their_centres() -> None:
    # 2 × 3 cells of 32 pixels, whose own centres are at 16, 48 and 80.
    boxes = [
        (80 / 96, 16 / 64, 0.9, 0.9),  # off the image's centre, however large the box
        (48 / 96, 48 / 64, 0.1, 0.1),
        (56 / 96, 24 / 64, 0.1, 0.1),  # between cells
        (1.0, 1.0, 0.01, 0.01),  # at the border
        (0.0, 63 / 64, 0.01, 0.01),
    ]
    images = torch.stack([torch.full((3, 64, 96), 0.25), torch.full((3, 64, 96), 0.75), torch.zeros(3, 64, 96)])
    targets = [target([4, 3, 2], *boxes[:3]), target([]), target([1, 0], *boxes[3:])]
    found = read(where_am_i, [(images[:2], targets[:2]), (images[2:], targets[2:])], CPU)
    expected = torch.tensor([[0, 2, 0.25], [1, 1, 0.25], [0.25, 1.25, 0.25], [1, 2, 0], [1, 0, 0]])
    torch.testing.assert_close(found.features, expected, rtol=0, atol=1e-5)
    assert found.labels.tolist() == [4, 3, 2, 1, 0]
    assert found.images.tolist() == [0, 0, 0, 2, 2]
    assert found.maps.shape == (0, 3, 2, 3)
    assert found.grid == (2, 3)


def test_rows_are_heights_and_columns_widths() -> None:
    feature_map = torch.arange(40.0).view(1, 4, 10)
    assert at_centres(feature_map, torch.tensor([[0.95, 0.125, 0.2, 0.2]])).item() == pytest.approx(9, abs=1e-5)
    assert at_centres(feature_map, torch.tensor([[0.05, 0.875, 0.2, 0.2]])).item() == pytest.approx(30, abs=1e-5)


def test_objects_of_a_data_set_are_found_on_its_pictures(toy: Path) -> None:
    # Squeezed to 64 × 96, and read from maps with a cell for every pixel, which say where they are.
    data = split(toy)

    def place(images: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(64.0) + 0.5, torch.arange(96.0) + 0.5, indexing="ij")
        maps = torch.stack([columns, rows]).expand(len(images), -1, -1, -1)
        return torch.cat([maps, images.mean((1, 2, 3), keepdim=True).expand(-1, -1, 64, 96)], 1)

    found = read(place, batches(data, batch_size=2), CPU, keep=[1, 4])
    stored = json.loads((toy / "instances_train.json").read_text())
    brightness = {int(aim["image_id"]): float(image.mean()) for image, aim in data}
    expected = []
    for image in stored["images"]:
        for entry in stored["annotations"]:
            if entry["image_id"] == image["id"]:
                left, top, width, height = entry["bbox"]
                expected.append([(left + width / 2) * 1.5, top + height / 2, brightness[image["id"]]])
    torch.testing.assert_close(found.features, torch.tensor(expected), rtol=0, atol=1e-3)
    assert found.labels.tolist() == [int(label) for number in range(5) for label in data[number][1]["labels"]]
    assert len(found.maps) == 2
    assert found.maps[:, 2, 0, 0].tolist() == pytest.approx([float(data[number][0].mean()) for number in (1, 4)])


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(InputError, match="2 images without an object"):
        read(where_am_i, [(torch.zeros(2, 3, 64, 64), [target([])] * 2)], CPU)


@pytest.mark.parametrize(("count", "most", "numbers"), [(3, 5, [0, 1, 2]), (10, 3, [0, 3, 6]), (4, 4, [0, 1, 2, 3])])
def test_some_images_stand_for_all(count: int, most: int, numbers: list[int]) -> None:
    assert evenly(count, most) == numbers


def traces(model: nn.Module) -> tuple[Any, ...]:
    """Everything that a look at a model could change."""
    hooks = [(name, len(vars(module)[name])) for module in model.modules() for name in vars(module) if "hooks" in name]
    return [module.training for module in model.modules()], hooks, [sorted(vars(m)) for m in model.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_the_student_is_left_as_it_was(toy: Path, training: bool) -> None:
    model = tiny_detector().train(training)
    before, marks = {key: value.clone() for key, value in model.state_dict().items()}, traces(model)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with tap_reader(model) as reader:
        found = read(reader, batches(split(toy), batch_size=2), CPU, keep=range(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert traces(model) == marks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not found.features.requires_grad

    seen: list[Tensor] = []
    model.eval().encoder.get_submodule("aifi").register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    with torch.no_grad():
        model(torch.stack([image for image, _ in split(toy)]))
    torch.testing.assert_close(found.maps, seen[0])
    assert found.maps.shape == (5, 128, 2, 3)


def test_another_tap_is_read_where_it_is_asked_for(toy: Path) -> None:
    with tap_reader(tiny_detector(), "encoder.top_down.0") as reader:
        assert read(reader, batches(split(toy), batch_size=2), CPU, keep=range(5)).maps.shape == (5, 128, 4, 6)


def test_hooks_go_also_after_an_error() -> None:
    model = tiny_detector()
    marks = traces(model)
    with pytest.raises(RuntimeError, match="in between"), tap_reader(model):
        raise RuntimeError("in between")
    assert traces(model) == marks


class TwoTaps(nn.Module):
    """Names two taps."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 32, 32), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(images))
        return out

    def taps(self, student: nn.Module) -> list[Tap]:
        return [Tap("one", self.one), Tap("two", self.two)]

    def feature_map(self, tap: Tap, output: Tensor, images: Tensor) -> Tensor:
        return output


def test_there_must_be_one_tap() -> None:
    with pytest.raises(InputError, match="2 taps; expected one"), tap_reader(TwoTaps()):
        raise AssertionError("unreachable")


def test_an_untrained_student_is_what_its_seed_draws() -> None:
    like = tiny_detector(num_queries=30)
    torch.manual_seed(3)
    expected = detectors.build(
        "deim_n", class_names=like.class_names, **{"input_size": (64, 96), **like.spec.changes()}
    )
    torch.manual_seed(4)
    state = torch.get_rng_state()
    fresh = untrained_like(like, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert fresh.spec == like.spec
    assert not fresh.training
    wanted = expected.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in fresh.state_dict().items())
    different = untrained_like(like, 4).state_dict()
    assert not all(torch.equal(value, different[key]) for key, value in wanted.items())


def test_a_readout_knows_its_grid() -> None:
    nothing = torch.zeros(0)
    assert Readout(nothing, nothing, nothing, torch.zeros(0, 8, 3, 5)).grid == (3, 5)
