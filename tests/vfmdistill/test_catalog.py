"""The table of teachers against timm itself, and the registry of a user's own."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest
import torch
from torch import nn

from vfmdistill.errors import InputError, UnknownNameError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers import catalog
from vfmdistill.teachers.catalog import CATALOG, TeacherSpec, list_teachers, register_teacher, teacher_spec


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_registered", {})


def own_spec(name: str = "mine") -> TeacherSpec:
    return TeacherSpec(name=name, family="mine", backend="module", model_id="mine", patch_size=8, embed_dim=4)


@pytest.mark.parametrize("name", list(CATALOG))
def test_a_row_says_what_timm_says(name: str) -> None:
    """Built on the meta device, where the largest costs no memory, and run there on a grid that is not square."""
    spec = CATALOG[name]
    with torch.device("meta"):
        teacher = Teacher(name, pretrained=False)
        features = teacher(torch.rand(1, 3, 7 * spec.patch_size, 11 * spec.patch_size), grid=(7, 11))
    assert features.map.shape == (1, spec.embed_dim, 7, 11)
    network = teacher.network.network
    assert spec.params == sum(parameter.numel() for parameter in network.parameters())
    assert spec.patch_size == network.feature_info[-1]["reduction"]
    assert spec.license == network.pretrained_cfg["license"]
    assert network.pretrained_cfg["hf_hub_id"]
    if spec.package is None:  # packaged weights have a normalisation of their own
        assert (spec.mean, spec.std) == (network.pretrained_cfg["mean"], network.pretrained_cfg["std"])


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
@pytest.mark.parametrize("name", ["dinov2_vits14", "timm:mine"])
def test_taken_names(name: str) -> None:
    with pytest.raises(InputError, match="Give the spec another name"):
        register_teacher(own_spec(name), lambda spec, pretrained, weights: nn.Identity())
