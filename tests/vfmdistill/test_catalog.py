"""The table of teachers against the backends themselves, and the registry of a user's own."""

from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any

import open_clip
import pydantic
import pytest
import timm
import torch
from open_clip.pretrained import get_pretrained_cfg
from torch import nn

from vfmdistill.errors import InputError, UnknownNameError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers import catalog
from vfmdistill.teachers.catalog import (
    CATALOG,
    TeacherSpec,
    list_teachers,
    loader_for,
    nearest_ungated,
    register_teacher,
    teacher_spec,
)
from vfmdistill.teachers.readout import Dense, Readout


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_registered", {})


def own_spec(name: str = "mine") -> TeacherSpec:
    return TeacherSpec(name=name, family="mine", backend="module", model_id="mine", patch_size=8, embed_dim=4)


GRIDS = ((20, 20), (10, 15), (17, 23))
# Where the authors say something else than timm: weights of a package with a normalisation of their own, and BEiT-3,
# whose `build_transform` has 0.5 for everything but fine-tuning on ImageNet.
OWN_NORMALISATION = {
    "efficientnet_lite0": (127 / 255, 128 / 255),
    "efficientnet_lite1": (127 / 255, 128 / 255),
    "efficientnet_lite2": (127 / 255, 128 / 255),
    "beit3_base": (0.5, 0.5),
    "beit3_large": (0.5, 0.5),
}
ON_TIMM = [spec.name for spec in CATALOG.values() if spec.backend == "timm"]
ON_OPEN_CLIP = [spec.name for spec in CATALOG.values() if spec.backend == "open_clip"]
SMALLEST = {
    min((spec for spec in CATALOG.values() if spec.family == family), key=lambda spec: spec.params).name
    for family in {spec.family for spec in CATALOG.values()}
}


def skip_if_timm_is_too_old(spec: TeacherSpec) -> None:
    if spec.backend == "timm" and not timm.is_model(spec.model_id.partition(".")[0]):
        pytest.skip(f"timm {timm.__version__} has no {spec.model_id}")


@functools.cache
def structure(backend: str, architecture: str, dense: Dense, grids: tuple[tuple[int, int], ...]) -> list[Any]:
    """Parameters and maps of a network, before any resizing; on the meta device, where the largest costs no memory."""
    spec = next(spec for spec in CATALOG.values() if (spec.backend, architecture_of(spec)) == (backend, architecture))
    with torch.device("meta"), torch.no_grad():
        network = loader_for(spec)(spec, False, None, Readout(dense=dense)).eval()
        sizes = [(height * spec.patch_size, width * spec.patch_size) for height, width in grids]
        maps = [tuple(network(torch.empty(1, 3, *size))[0].shape) for size in sizes]
    return [sum(parameter.numel() for parameter in network.parameters()), *maps]


def architecture_of(spec: TeacherSpec) -> str:
    return spec.model_id.partition("." if spec.backend == "timm" else "/")[0]


@pytest.mark.parametrize("name", list(CATALOG))
def test_a_row_is_what_its_backend_builds(name: str) -> None:
    """All grids for the smallest of each family, the most awkward one for the others."""
    spec = CATALOG[name]
    skip_if_timm_is_too_old(spec)
    grids = GRIDS if name in SMALLEST else GRIDS[-1:]
    expected = [spec.params, *((1, spec.embed_dim, *grid) for grid in grids)]
    assert structure(spec.backend, architecture_of(spec), spec.dense, grids) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CATALOG))
def test_a_row_is_what_its_backend_builds_on_every_grid(name: str) -> None:
    spec = CATALOG[name]
    skip_if_timm_is_too_old(spec)
    expected = [spec.params, *((1, spec.embed_dim, *grid) for grid in GRIDS)]
    assert structure(spec.backend, architecture_of(spec), spec.dense, GRIDS) == expected


@pytest.mark.parametrize("name", ON_TIMM)
def test_a_row_says_what_timm_says(name: str) -> None:
    spec = CATALOG[name]
    skip_if_timm_is_too_old(spec)
    config = timm.get_pretrained_cfg(spec.model_id)
    assert spec.license == config.license
    mean, std = OWN_NORMALISATION.get(name, (None, None))
    assert spec.mean == (config.mean if mean is None else (mean,) * 3)
    assert spec.std == (config.std if std is None else (std,) * 3)
    assert (spec.repository, config.hf_hub_filename) == (None if spec.package else config.hf_hub_id, None)


@pytest.mark.parametrize("name", ON_OPEN_CLIP)
def test_a_row_says_what_open_clip_says(name: str) -> None:
    spec = CATALOG[name]
    model, _, tag = spec.model_id.partition("/")
    published = get_pretrained_cfg(model, tag)
    vision = open_clip.get_model_config(model)["vision_cfg"]
    assert (spec.patch_size, spec.embed_dim) == (vision["patch_size"], vision["width"])
    assert (spec.mean, spec.std) == (published["mean"], published["std"])
    assert f"{spec.repository}/" == published["hf_hub"]


def test_networks_trained_with_quick_gelu_are_run_with_it() -> None:
    """timm says so in its notes on the variant without it."""
    for name in ON_TIMM:
        config = timm.get_pretrained_cfg(CATALOG[name].model_id)
        notes = " ".join(getattr(config, "notes", None) or ())
        assert ("QuickGELU" in notes) <= ("_quickgelu_" in CATALOG[name].model_id), name


def test_the_families() -> None:
    families = collections.Counter(spec.family for spec in CATALOG.values())
    assert families == {
        "dinov2": 8, "dinov3": 12, "siglip": 5, "siglip2": 10, "clip": 21, "clipa": 3, "coca": 2, "metaclip": 4,
        "metaclip2": 3, "mobileclip": 5, "mobileclip2": 6, "evaclip": 5, "pe": 10, "eva02": 4, "aimv2": 6, "mae": 3,
        "sam": 3, "sam2": 4, "radio": 6, "tipsv2": 4, "beit3": 2, "hiera": 6, "convnext": 5, "convnextv2": 3,
        "efficientnet": 3, "efficientnetv2": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("hf:facebook/dinov3-vitb16-pretrain-lvd1689m", "dinov3_vitb16"),
        ("hf:facebook/dinov3-vits16-pretrain-lvd1689m", "dinov3_vits16"),
        ("dinov3_vitb16", "dinov2_vitb14"),
    ],
)
def test_the_nearest_ungated_teacher(name: str, nearest: str) -> None:
    spec = CATALOG.get(name) or own_spec(name).model_copy(update={"family": "dinov3"})
    assert nearest_ungated(spec).name == nearest


def test_the_reference_teacher() -> None:
    spec = teacher_spec("dinov3_vitb16")  # RT-DETRv4's: ViT-B/16, 768 wide, LVD-1689M
    assert (spec.patch_size, spec.embed_dim, spec.model_id) == (16, 768, "vit_base_patch16_dinov3.lvd1689m")


def test_names_are_listed_sorted_and_filtered() -> None:
    assert list_teachers("dinov2_vits*") == ["dinov2_vits14", "dinov2_vits14_reg"]
    assert list_teachers() == sorted(list_teachers())
    assert set(CATALOG) <= set(list_teachers())
    assert list_teachers("no_such_*") == []


def test_names_begin_with_their_family() -> None:
    assert all(name == spec.name and name.startswith(f"{spec.family}_") for name, spec in CATALOG.items())


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown teacher 'dino_v2_vitb14'; nearest: dinov2_vitb14"):
        teacher_spec("dino_v2_vitb14")


def test_a_spec_cannot_be_changed_or_misspelt() -> None:
    with pytest.raises(pydantic.ValidationError):
        CATALOG["dinov2_vits14"].patch_size = 16  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="patchsize"):
        TeacherSpec.model_validate(own_spec().model_dump() | {"patchsize": 3})
    with pytest.raises(pydantic.ValidationError, match="std"):
        TeacherSpec.model_validate(own_spec().model_dump() | {"std": (1, 0, 1)})


@pytest.mark.usefixtures("own_registry")
def test_a_registered_teacher_is_built_by_its_loader() -> None:
    calls: list[tuple[TeacherSpec, bool, Path | None]] = []

    def loader(spec: TeacherSpec, pretrained: bool, weights: Path | None) -> nn.Module:
        calls.append((spec, pretrained, weights))
        return nn.Conv2d(3, 4, 8, 8)

    register_teacher(own_spec(), loader)
    register_teacher(own_spec(), loader)
    assert "mine" in list_teachers("mi*")
    assert teacher_spec("mine") == own_spec()
    teacher = Teacher("mine", weights="here.pth")
    assert calls == [(own_spec(), True, Path("here.pth"))]
    assert teacher(torch.rand(1, 3, 64, 64), grid=(3, 5)).map.shape == (1, 4, 3, 5)


@pytest.mark.usefixtures("own_registry")
def test_a_registered_teacher_decides_itself_what_it_gives() -> None:
    register_teacher(own_spec(), lambda spec, pretrained, weights: nn.Conv2d(3, 4, 8, 8))
    load = loader_for(own_spec())
    assert isinstance(load(own_spec(), False, None, Readout()), nn.Conv2d)
    for readout in (Readout(dense="value"), Readout(blocks=(9,)), Readout(merge="mean")):
        with pytest.raises(InputError, match="dense= and blocks= have no meaning for it"):
            load(own_spec(), False, None, readout)


def test_a_backend_without_weights_of_its_own() -> None:
    with pytest.raises(InputError, match=r"register the spec together with a loader by register_teacher"):
        loader_for(own_spec("not registered"))


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("name", ["dinov2_vits14", "timm:mine"])
def test_taken_names(name: str) -> None:
    with pytest.raises(InputError, match="Give the spec another name"):
        register_teacher(own_spec(name), lambda spec, pretrained, weights: nn.Identity())
