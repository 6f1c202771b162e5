"""The names of teachers, and the registry of a user's own."""

from __future__ import annotations

import collections
from pathlib import Path

import pydantic
import pytest
import torch
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
from vfmdistill.teachers.readout import Readout


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_registered", {})


def own_spec(name: str = "mine") -> TeacherSpec:
    return TeacherSpec(name=name, family="mine", backend="module", model_id="mine", patch_size=8, embed_dim=4)


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
