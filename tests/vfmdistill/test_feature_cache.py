"""The cache of features: what is served, to whom, and what happens when the disk or the files are not as they were."""

from __future__ import annotations

import copy
import errno
import io
import json
import multiprocessing
import os
import pickle
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vfmdistill.errors import DistillError, InputError
from vfmdistill.feature_cache import FeatureCache
from vfmdistill.teacher import Teacher, TeacherFeatures
from vfmdistill.teachers.catalog import TeacherSpec

GRID = (3, 4)


class Network(nn.Module):
    """Map and, if wanted, summary; counts the images that it has seen."""

    def __init__(self, with_summary: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 5, 4, 4)
        self.with_summary = with_summary
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.seen += len(images)
        feature_map = self.conv(images)
        return (feature_map, feature_map.mean((2, 3))) if self.with_summary else feature_map


def tiny(cache: Path | str | FeatureCache | None, *, name: str = "tiny", **options: Any) -> Teacher:
    dtype = options.pop("dtype", None)
    spec = TeacherSpec(name=name, family="tiny", backend="module", model_id="tiny", patch_size=4, embed_dim=5)
    return Teacher(Network(**options), spec=spec, cache=cache, dtype=dtype)


def counts(teacher: Teacher) -> tuple[int, int]:
    assert teacher.cache is not None
    return teacher.cache.hits, teacher.cache.misses


def assert_same(given: TeacherFeatures, expected: TeacherFeatures) -> None:
    assert isinstance(given, TeacherFeatures)
    assert torch.equal(given.map, expected.map)
    assert given.map.dtype == expected.map.dtype
    if expected.summary is None:
        assert given.summary is None
    else:
        assert given.summary is not None
        assert torch.equal(given.summary, expected.summary)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*.safetensors"))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 24, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_summary", [True, False])
def test_what_comes_again_is_served_bit_by_bit(
    tmp_path: Path, images: Tensor, dtype: torch.dtype, with_summary: bool
) -> None:
    expected = tiny(None, with_summary=with_summary, dtype=dtype)(images, GRID)
    teacher = tiny(tmp_path / "cache", with_summary=with_summary, dtype=dtype)
    assert_same(teacher(images, GRID), expected)
    assert_same(teacher(images, GRID), expected)
    assert (teacher.network.seen, counts(teacher)) == (6 + 1, (6, 6))  # the first that is found is compared
    assert_same(teacher(images, GRID), expected)
    assert (teacher.network.seen, counts(teacher)) == (6 + 1, (12, 6))
    again = tiny(tmp_path / "cache", with_summary=with_summary, dtype=dtype)  # another run
    assert_same(again(images, GRID), expected)
    assert again.network.seen == 1
    assert len(entries(tmp_path / "cache")) == 6
    assert not list((tmp_path / "cache" / "partial").iterdir())


def test_only_what_is_missing_is_computed(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(tmp_path)
    teacher(images[[1, 4]], GRID)
    batch = images[[0, 1, 2, 0, 4, 1]]  # some known, some twice
    assert_same(teacher(batch, GRID), tiny(None)(batch, GRID))
    assert (teacher.network.seen, counts(teacher)) == (4 + 1, (2, 4))


def test_another_image_is_never_served(tmp_path: Path, images: Tensor) -> None:
    teacher, plain = tiny(tmp_path), tiny(None)
    teacher(images, GRID)
    touched = images.clone()
    touched[:, 1, 5, 7] += 0.01
    for batch in (images.flip(-1), images.flip(1), images.roll(1, -1), touched):
        assert_same(teacher(batch, GRID), plain(batch, GRID))
    assert counts(teacher) == (0, 30)


def test_another_grid_is_another_entry(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(tmp_path)
    for grid in (GRID, (6, 8), (4, 3)):
        assert_same(teacher(images, grid), tiny(None)(images, grid))
    # A module without a spec gets its images as they are: pixels alone do not tell the grid.
    module = Teacher(Network(), cache=tmp_path / "module")
    for grid in (GRID, (6, 8), GRID):
        assert_same(module(images, grid), Teacher(Network())(images, grid))
    assert counts(module) == (6, 12)


def test_the_pixels_decide_and_not_how_they_come(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(tmp_path)
    held = (images * 255).round().to(torch.uint8)
    teacher(held, GRID, "uint8")
    teacher(held.to(memory_format=torch.channels_last), GRID, "uint8")
    for image in held.split(1):
        teacher(image, GRID, "uint8")
    with torch.inference_mode():
        teacher(held, GRID, "uint8")
    assert counts(teacher) == (18, 6)


def test_it_is_off_the_graph(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(tmp_path)
    weight = torch.ones(1, requires_grad=True)
    for _ in range(2):
        features = teacher(images.requires_grad_(), GRID)
        assert not features.map.requires_grad
        (features.map * weight).sum().backward()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 1}, r"weights"),
        ({"dtype": torch.bfloat16}, r"dtype, weights"),
        ({"name": "tinier"}, r"teacher"),
    ],
)
def test_the_cache_of_another_teacher(tmp_path: Path, images: Tensor, other: dict[str, Any], words: str) -> None:
    tiny(tmp_path)(images, GRID)
    name = other.get("name", "tiny")
    dtype = str(other.get("dtype", torch.float32)).removeprefix("torch.")
    message = (
        rf"belongs to teacher 'tiny' \(float32, weights .*; this is teacher '{name}' \({dtype}, weights .*"
        rf"differ in {words}\. Give each teacher a folder of its own"
    )
    with pytest.raises(InputError, match=message):
        tiny(tmp_path, **other)(images, GRID)
    assert len(entries(tmp_path)) == 6


def test_one_cache_given_to_two_teachers(tmp_path: Path, images: Tensor) -> None:
    cache = FeatureCache(tmp_path)
    first, second = tiny(cache), tiny(cache, seed=1)
    expected = first(images, GRID)
    with pytest.raises(InputError, match="belongs to teacher"):
        second(images, GRID)
    assert_same(first(images, GRID), expected)


def test_weights_that_change_later_are_another_teacher(tmp_path: Path, images: Tensor) -> None:
    for change in (
        lambda teacher: teacher.load_state_dict(tiny(None, seed=1).state_dict()),
        lambda teacher: teacher.load_state_dict(tiny(None, seed=1).state_dict(), assign=True),
        lambda teacher: teacher.network.conv.bias.zero_(),
        lambda teacher: teacher.double(),
        lambda teacher: teacher.network.double(),
    ):
        teacher = tiny(tmp_path)
        teacher(images, GRID)
        change(teacher)
        with pytest.raises(InputError, match=r"differ in .*weights"):
            teacher(images, GRID)


def test_a_teacher_with_a_cache_can_be_copied(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(tmp_path)
    expected = teacher(images, GRID)
    twin = copy.deepcopy(teacher)
    twin.network.seen = 0
    assert_same(twin(images, GRID), expected)
    assert (twin.network.seen, teacher.network.seen) == (1, 6)
    stored = pickle.loads(pickle.dumps(teacher))
    assert_same(stored(images, GRID), expected)
    assert set(teacher.state_dict()) == {"network.conv.weight", "network.conv.bias"}
    tiny(None).load_state_dict(teacher.state_dict())


class Scaled(Network):
    """Decides by a number that neither its weights nor its structure show."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        feature_map, summary = super().forward(images)
        return feature_map * self.scale, summary


def test_a_module_whose_code_has_changed(tmp_path: Path, images: Tensor) -> None:
    first = Teacher(Scaled(1.0), cache=tmp_path)
    first(images, (6, 8))
    other = Teacher(Scaled(2.0), cache=tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"differ by 50% of their length.*code of a module. Delete the folder"):
            other(images, (6, 8))
    nearly = Teacher(Scaled(1.01), cache=tmp_path)  # as on another device
    assert_same(nearly(images, (6, 8)), first(images, (6, 8)))


def test_one_image_in_a_thousand_is_compared(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(tmp_path)
    for _ in range(1 + 168):
        teacher(images, GRID)
    assert (teacher.network.seen, counts(teacher)) == (6 + 2, (168 * 6, 6))
    teacher.network.conv.weight.data.neg_()  # unseen by PyTorch's count of changes
    for _ in range(166):
        teacher(images, GRID)
    with pytest.raises(InputError, match="holds other features"):
        teacher(images, GRID)


def test_a_summary_that_is_a_view_of_the_map(tmp_path: Path, images: Tensor) -> None:
    class View(Network):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            feature_map = self.conv(images)
            return feature_map, feature_map.flatten(1)

    teacher = Teacher(View(), cache=tmp_path)
    for _ in range(2):
        assert_same(teacher(images, (6, 8)), Teacher(View())(images, (6, 8)))


def damage_content(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # one bit
    file.write_bytes(content)


def damage_shape(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"[5,3,4]", b"[5,4,3]"))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def swap(file: Path) -> None:
    other = next(entry for entry in entries(file.parents[1]) if entry != file)
    file.write_bytes(other.read_bytes())


def strip(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.clone() for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize("damage", [damage_content, damage_shape, truncate, empty, swap, strip])
def test_a_damaged_entry_is_named_and_never_served(tmp_path: Path, images: Tensor, damage: Any) -> None:
    teacher = tiny(tmp_path)
    expected = teacher(images, GRID)
    file = entries(tmp_path)[2]
    damage(file)
    with pytest.raises(InputError, match=r"is damaged: .+Delete that file") as caught:
        teacher(images, GRID)
    assert str(file) in str(caught.value)
    file.unlink()
    assert_same(teacher(images, GRID), expected)
    assert_same(teacher(images, GRID), expected)


def test_an_entry_that_cannot_be_read(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(tmp_path)
    teacher(images, GRID)
    file = entries(tmp_path)[2]
    file.unlink()
    file.mkdir()
    with pytest.raises(DistillError, match=r"cannot be read: .*Look at the disk") as caught:
        teacher(images, GRID)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", '{"teacher": '])
def test_a_damaged_manifest(tmp_path: Path, images: Tensor, content: str) -> None:
    tiny(tmp_path)(images, GRID)
    (tmp_path / "teacher.json").write_text(content)
    with pytest.raises(InputError, match=r"teacher.json.* is damaged.*Delete the folder"):
        tiny(tmp_path)(images, GRID)


def test_the_manifest_tells_what_the_folder_is(tmp_path: Path, images: Tensor) -> None:
    tiny(tmp_path)(images, GRID)
    manifest = json.loads((tmp_path / "teacher.json").read_text())
    assert (manifest["teacher"], manifest["dtype"], manifest["readout"]["dense"]) == ("tiny", "float32", "tokens")
    with safe_open(entries(tmp_path)[0], framework="pt") as file:
        assert file.get_tensor("map").shape == (5, 3, 4)
        assert file.get_tensor("summary").shape == (5,)


def test_a_folder_of_other_things(tmp_path: Path, images: Tensor) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(InputError, match=r"is no feature cache: it holds files.*Give a new or empty one"):
        tiny(tmp_path)(images, GRID)
    with pytest.raises(DistillError, match=r"cannot be used: .*Give a folder that can be written"):
        tiny(tmp_path / "holiday.jpg")(images, GRID)


@pytest.mark.parametrize("written", [0, 40])
def test_a_full_disk(tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    teacher = tiny(tmp_path)
    teacher(images[:2], GRID)

    class Full:
        """A file on a disk with room for a few bytes more."""

        def __init__(self, path: Path) -> None:
            self.file = io.FileIO(path, "xb")

        def write(self, content: bytes) -> None:
            self.file.write(content[:written])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *reason: object) -> None:
            self.file.close()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda self, mode: Full(self))
        with pytest.raises(DistillError, match=r"cannot be written: No space left on device.*Make room"):
            teacher(images, GRID)
    assert len(entries(tmp_path)) == 2
    assert not list((tmp_path / "partial").iterdir())
    assert_same(teacher(images, GRID), tiny(None)(images, GRID))
    assert len(entries(tmp_path)) == 6


def test_a_folder_that_can_only_be_read(tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny(tmp_path)(images[:4], GRID)
    (tmp_path / "partial").rmdir()  # archives leave out empty folders

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        if not (self.is_dir() and options.get("exist_ok")):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for method in ("mkdir", "unlink"):
        monkeypatch.setattr(Path, method, refuse)
    teacher = tiny(FeatureCache(tmp_path, limit=10**6))
    assert_same(teacher(images[:4], GRID), expected)
    with pytest.raises(DistillError, match="cannot be written: Read-only file system"):
        teacher(images, GRID)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny(tmp_path)
    teacher(images[:1], GRID)

    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        teacher(images, GRID)
    assert len(entries(tmp_path)) == 1
    assert not list((tmp_path / "partial").iterdir())


def test_what_killed_processes_left_is_removed(tmp_path: Path, images: Tensor) -> None:
    tiny(tmp_path)(images, GRID)
    old, fresh = (tmp_path / "partial" / name for name in ("old", "fresh"))
    old.touch()
    fresh.touch()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    tiny(tmp_path)(images, GRID)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_a_limit_is_kept_and_what_is_there_goes_on_being_served(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(tmp_path / "all")
    teacher(images, GRID)
    size = entries(tmp_path / "all")[0].stat().st_size
    limited = tiny(FeatureCache(tmp_path / "some", limit=2 * size + 1))
    for _ in range(2):
        assert_same(limited(images, GRID), tiny(None)(images, GRID))
    assert counts(limited) == (2, 10)
    other = tiny(FeatureCache(tmp_path / "some", limit=3 * size))  # another run may fill what has become free
    other(images, GRID)
    assert len(entries(tmp_path / "some")) == 3


def test_a_cache_that_never_hits_says_so_once(tmp_path: Path, images: Tensor) -> None:
    teacher = tiny(FeatureCache(tmp_path / "a", patience=12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher(images, GRID)
        with pytest.raises(UserWarning, match=r"none of the first 12 images .*drop cache=.*patience=N"):
            teacher(images.flip(-1), GRID)
        teacher(images.flip(-2), GRID)
        hitting = tiny(FeatureCache(tmp_path / "b", patience=12))
        for batch in (images, images, images.flip(-1)):
            hitting(batch, GRID)


@pytest.mark.parametrize("options", [{"limit": 0}, {"patience": 0}])
def test_bad_options(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="from 1"):
        FeatureCache(tmp_path, **options)


def test_several_threads_share_a_folder(tmp_path: Path, images: Tensor) -> None:
    expected = tiny(None)(images, GRID)
    teachers = [tiny(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for features in pool.map(lambda teacher: teacher(images, GRID), teachers * 8):
            assert_same(features, expected)
    assert len(entries(tmp_path)) == 6


def _run(folder: Path, images: Tensor, answers: Any) -> None:
    torch.set_num_threads(1)
    teacher = tiny(folder)
    for shift in range(3):
        for _ in range(2):
            features = teacher(images.roll(shift, 0), GRID)
    answers.put((features.map.tolist(), counts(teacher)))


def test_several_processes_share_a_folder(tmp_path: Path, images: Tensor) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=_run, args=(tmp_path / "new", images, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    given = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    expected = tiny(None)(images.roll(2, 0), GRID).map
    for values, (hits, misses) in given:
        assert torch.equal(torch.tensor(values), expected)
        assert hits + misses == 36
        assert misses <= 6
    assert len(entries(tmp_path / "new")) == 6
