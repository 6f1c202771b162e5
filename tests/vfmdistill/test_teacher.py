"""The Teacher itself: freezing, input ranges, grids, errors. Networks are tiny modules of known arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmdistill import teacher as teacher_module
from vfmdistill.errors import InputError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers.catalog import IMAGENET_MEAN, IMAGENET_STD, TeacherSpec
from vfmdistill.teachers.readout import Readout

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.5)
PATCH = 4


def tiny_spec(**changes: object) -> TeacherSpec:
    fields: dict[str, object] = {"name": "tiny", "family": "tiny", "backend": "module", "model_id": "tiny"}
    fields |= {"patch_size": PATCH, "embed_dim": 5, "mean": MEAN, "std": STD}
    return TeacherSpec.model_validate(fields | changes)


class Patches(nn.Module):
    """One linear layer on each patch; keeps what it was given."""

    def __init__(self, with_summary: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, PATCH, PATCH)
        self.dropout = nn.Dropout(0.5)
        self.with_summary = with_summary

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.seen = images
        feature_map = self.dropout(self.conv(images))
        return (feature_map, feature_map.mean((2, 3))) if self.with_summary else feature_map


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(Patches(), spec=tiny_spec())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_it_is_frozen_and_stays_in_eval_mode(teacher: Teacher, images: Tensor) -> None:
    nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    features = teacher(images.requires_grad_(), grid=(10, 14))
    assert not features.map.requires_grad
    torch.testing.assert_close(features.map, teacher(images, grid=(10, 14)).map, rtol=0, atol=0)  # no dropout
    # What comes out may be kept for another network's backward, which tensors of inference mode may not.
    weight = torch.ones(1, requires_grad=True)
    (features.map * weight).sum().backward()


@pytest.mark.parametrize("grid", [(10, 14), (5, 7), (10, 7), (7, 11), (20, 20), (1, 1)])
def test_the_map_is_exactly_on_the_grid(teacher: Teacher, images: Tensor, grid: tuple[int, int]) -> None:
    features = teacher(images, grid=grid)
    assert features.map.shape == (2, 5, *grid)
    assert features.summary is None


def test_a_whole_ratio_averages_blocks_of_pixels(teacher: Teacher, images: Tensor) -> None:
    expected = teacher.network.conv(F.avg_pool2d(normalised(images), 2))
    torch.testing.assert_close(teacher(images, grid=(5, 7)).map, expected)


def test_other_ratios_are_resized_antialiased(teacher: Teacher, images: Tensor) -> None:
    pixels = F.interpolate(images, (7 * PATCH, 11 * PATCH), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher(images, grid=(7, 11)).map, teacher.network.conv(normalised(pixels)))


def test_input_ranges_mean_the_same_image(teacher: Teacher, images: Tensor) -> None:
    as_uint8 = (images * 255).round().to(torch.uint8)
    unit = as_uint8.float() / 255
    expected = teacher(unit, grid=(10, 14)).map
    imagenet = (unit - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    for held, input_range in (
        (as_uint8, "uint8"),
        (imagenet, "imagenet"),
        (unit * 2 - 1, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        (unit * 255, ((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))),
    ):
        torch.testing.assert_close(teacher(held, (10, 14), input_range).map, expected, rtol=1e-5, atol=1e-5)


def test_images_that_are_already_right_are_passed_through_bit_for_bit(teacher: Teacher, images: Tensor) -> None:
    teacher(images, grid=(10, 14), input_range=(MEAN, STD))
    assert torch.equal(teacher.network.seen, images)


def test_it_runs_outside_autocast_in_its_own_dtype(teacher: Teacher, images: Tensor) -> None:
    expected = teacher(images, grid=(10, 14)).map
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = teacher(images, grid=(10, 14))
    assert features.map.dtype == torch.float32
    assert torch.equal(features.map, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype(images: Tensor, dtype: torch.dtype) -> None:
    teacher = Teacher(Patches(with_summary=True), spec=tiny_spec(), dtype=dtype)
    assert teacher.dtype == dtype
    features = teacher(images, grid=(7, 11))
    assert features.map.dtype == features.summary.dtype == dtype
    expected = Teacher(Patches(), spec=tiny_spec())(images, grid=(7, 11)).map
    torch.testing.assert_close(features.map.float(), expected, rtol=0.02, atol=0.05)
    assert features.summary.shape == (2, 5)


def test_a_map_on_another_grid_is_brought_to_the_one_asked_for(images: Tensor) -> None:
    teacher = Teacher(Patches(), spec=tiny_spec(patch_size=2 * PATCH))  # its map has twice the cells each way
    features = teacher(images, grid=(5, 7))
    expected = F.avg_pool2d(teacher.network.conv(normalised(images)), 2)
    torch.testing.assert_close(features.map, expected)
    pyramid = Teacher(nn.Sequential(nn.Conv2d(3, 5, 3, stride=3)), spec=tiny_spec())
    assert pyramid(images, grid=(7, 11)).map.shape == (2, 5, 7, 11)


def test_a_bare_module_gets_the_images_as_they_are(images: Tensor) -> None:
    module = Patches()
    teacher = Teacher(module)
    assert (teacher.embed_dim, teacher.spec.patch_size, teacher.spec.backend) == (5, PATCH, "module")
    assert teacher.spec.params == sum(parameter.numel() for parameter in module.parameters())
    features = teacher(images, grid=(5, 7))
    assert torch.equal(module.seen, images)
    torch.testing.assert_close(features.map, F.avg_pool2d(module.conv(images), 2))


def test_a_module_without_parameters(images: Tensor) -> None:
    teacher = Teacher(nn.AvgPool2d(8))
    assert (teacher.embed_dim, teacher.dtype, teacher.device) == (3, torch.float32, None)
    torch.testing.assert_close(teacher(images, grid=(5, 7)).map, F.avg_pool2d(images, 8))


def test_it_can_be_copied(teacher: Teacher, images: Tensor) -> None:
    twin = copy.deepcopy(teacher)
    assert torch.equal(twin(images, (10, 14)).map, teacher(images, (10, 14)).map)


class Layers(nn.Module):
    """Three layers of five channels, whose maps are read as a `Readout` says."""

    def __init__(self, readout: Readout) -> None:
        super().__init__()
        self.readout = readout
        self.conv = nn.Conv2d(3, 5, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        maps = [self.conv(images) + block for block in self.readout.block_indices(3, "tiny")]
        return torch.cat(maps, dim=1) if self.readout.merge == "concat" else torch.stack(maps).mean(0)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> TeacherSpec:
    """A catalogue of one, whose loader builds `Layers` and whose class-token training asks for the value path."""
    spec = tiny_spec(dense="value")
    monkeypatch.setattr(teacher_module, "teacher_spec", lambda name: spec)
    monkeypatch.setattr(
        teacher_module, "loader_for", lambda spec: lambda spec, pretrained, weights, readout: Layers(readout)
    )
    return spec


@pytest.mark.parametrize(
    ("options", "readout", "width"),
    [
        ({}, Readout(dense="value"), 5),
        ({"dense": "tokens"}, Readout(), 5),
        ({"blocks": [1, 3]}, Readout(blocks=(1, 3)), 10),  # who asks for blocks asks for their tokens
        ({"blocks": [1, 3], "merge": "mean"}, Readout(blocks=(1, 3), merge="mean"), 5),
    ],
)
def test_what_is_read_and_how_wide_it_is(
    named: TeacherSpec, images: Tensor, options: dict[str, Any], readout: Readout, width: int
) -> None:
    teacher = Teacher("tiny", **options)
    assert teacher.network.readout == readout
    assert (teacher.embed_dim, teacher.spec.embed_dim, teacher.spec.dense) == (width, width, readout.dense)
    assert teacher(images, grid=(5, 7)).map.shape == (2, width, 5, 7)
    assert named.embed_dim == 5  # the catalogue's row stays as it is


@pytest.mark.parametrize("options", [{"dense": "value"}, {"blocks": [1]}, {"merge": "mean"}])
def test_a_module_decides_itself_what_it_gives(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"dense=, blocks= and merge= go with a teacher's name"):
        Teacher(Patches(), **options)


@pytest.mark.parametrize("blocks", [[0], [], 3, "9", [1, 1]])
def test_no_choice_of_blocks(named: TeacherSpec, blocks: Any) -> None:
    with pytest.raises(InputError, match="no choice of blocks"):
        Teacher("tiny", blocks=blocks)


def test_the_precision_is_chosen_where_the_teacher_goes(named: TeacherSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    # The meta device stands for one that is good at bfloat16.
    monkeypatch.setattr(
        teacher_module, "dtype_for", lambda device: torch.bfloat16 if device.type == "meta" else torch.float32
    )
    assert Teacher("tiny").dtype == torch.float32
    assert Teacher("tiny").to("meta").dtype == torch.bfloat16
    assert nn.Sequential(Teacher("tiny")).to("meta")[0].dtype == torch.bfloat16  # inside a module that is moved
    assert Teacher("tiny").to("meta").to_empty(device="cpu").dtype == torch.float32
    assert Teacher("tiny").to("meta").to(memory_format=torch.channels_last).dtype == torch.bfloat16  # it has not moved
    # Whoever names a precision, to the constructor or in moving, gets it.
    assert Teacher("tiny", dtype=torch.float32).to("meta").dtype == torch.float32
    assert Teacher("tiny").to("meta", torch.float16).dtype == torch.float16
    assert Teacher("tiny").double().to("meta").dtype == torch.float64
    assert Teacher(Patches(), spec=tiny_spec()).to("meta").dtype == torch.float32  # a module keeps its own
    monkeypatch.setattr(teacher_module, "dtype_for", lambda device: torch.bfloat16)
    assert Teacher("tiny").dtype == torch.bfloat16  # where it is built


def test_images_are_prepared_in_float32(images: Tensor) -> None:
    teacher = Teacher(Patches(), spec=tiny_spec(), dtype=torch.bfloat16)
    teacher(images, grid=(5, 7))
    exact = normalised(F.avg_pool2d(images, 2)).to(torch.bfloat16)
    torch.testing.assert_close(teacher.network.seen, exact, rtol=2**-8, atol=0)  # one rounding, at the end
    assert (teacher.network.seen == exact).float().mean() > 0.99


def test_compile_compiles_the_network_and_keeps_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    network = Patches()
    teacher = Teacher(network, spec=tiny_spec(), compile=True)
    assert compiled == [network]
    assert set(teacher.state_dict()) == {"network.conv.weight", "network.conv.bias"}


@pytest.mark.parametrize(
    ("shape", "grid", "input_range", "words"),
    [
        ((3, 40, 56), (5, 7), "unit", r"\(3, 40, 56\).*\(N, 3, H, W\)"),
        ((2, 1, 40, 56), (5, 7), "unit", r"\(N, 3, H, W\)"),
        ((0, 3, 40, 56), (5, 7), "unit", r"\(N, 3, H, W\)"),
        ((2, 3, 40, 56), (5, 0), "unit", r"grid=\(5, 0\).*\(height, width\)"),
        ((2, 3, 40, 56), (5, 7, 1), "unit", "grid="),
        ((2, 3, 40, 56), (5.0, 7.0), "unit", "grid="),
        ((2, 3, 40, 56), (5, 7), "0-255", 'input_range=\'0-255\'.*"unit" or "imagenet"'),
        ((2, 3, 40, 56), (5, 7), "uint8", "torch.float32 with input_range='uint8'"),
        ((2, 3, 40, 56), (5, 7), ((0, 0, 0), (1, 0, 1)), "std > 0"),
        ((2, 3, 40, 56), (5, 7), (0.5, 0.5), "no pair of mean and std"),
        ((2, 3, 40, 56), (5, 7), ((0, 0, float("nan")), (1, 1, 1)), "no pair of mean and std"),
    ],
)
def test_bad_arguments(teacher: Teacher, shape: tuple[int, ...], grid: object, input_range: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        teacher(torch.zeros(shape), grid, input_range)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_not_unit_range(teacher: Teacher, images: Tensor, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=f"{dtype} with input_range='unit'"):
        teacher(images.to(dtype), grid=(5, 7))


def test_another_device(teacher: Teacher, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"on cpu, the images are on meta.*teacher\.to"):
        teacher(images.to("meta"), grid=(5, 7))


def test_a_wrong_width_in_the_spec(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 5, 10, 14\).*expected \(2, 6, h, w\)"):
        Teacher(Patches(), spec=tiny_spec(embed_dim=6))(images, grid=(10, 14))


def test_a_size_that_the_network_refuses(images: Tensor) -> None:
    class Fixed(Patches):
        def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            assert images.shape[-1] == 224, "width must be 224"
            return super().forward(images)

    with pytest.raises(InputError, match="cannot take images of 40×56 pixels: width must be 224"):
        Teacher(Fixed())(images, grid=(10, 14))


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(InputError, match=r"weights= goes with a teacher's name"):
        Teacher(Patches(), weights="somewhere.pth")
    with pytest.raises(InputError, match=r"spec= goes with a module"):
        Teacher("dinov2_vits14", pretrained=False, spec=tiny_spec())
    for dtype in (torch.int8, "bfloat16"):
        with pytest.raises(InputError, match=rf"cannot run in '?{dtype}'?; expected a floating-point torch.dtype"):
            Teacher(Patches(), dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"cache=True is no cache; expected a folder"):
        Teacher(Patches(), cache=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [nn.Flatten(), nn.Linear(7, 7)])
def test_a_module_that_gives_no_map(module: nn.Module) -> None:
    with pytest.raises(InputError, match=r"must return a map|could not be run"):
        Teacher(module)


@pytest.mark.parametrize(
    ("summary", "words"),
    [([1.0], "list"), (torch.zeros(1), r"tensor \(1,\)"), (torch.zeros(2, 5), r"N = 1.*tensor \(2, 5\)")],
)
def test_a_module_whose_summary_is_none(summary: object, words: str) -> None:
    class Summarised(Patches):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images), summary

    with pytest.raises(InputError, match=rf"must be \(N, D\).*{words}"):
        Teacher(Summarised())
