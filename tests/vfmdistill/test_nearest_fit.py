"""A file that does not fit: whose it may be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vfmdistill.teachers.catalog import CATALOG
from vfmdistill.teachers.nearest_fit import nearest_fit


def as_large_as(name: str, more: float = 0.0) -> dict[str, Tensor]:
    return {"weights": torch.empty(round(CATALOG[name].params * (1 + more)), device="meta")}


@pytest.mark.parametrize("name", ["dinov3_vits16plus", "dinov3_vith16plus", "sam_vitl16", "efficientnet_lite0"])
@pytest.mark.parametrize("more", [0.0, 0.001])
def test_the_teacher_of_that_size(name: str, more: float) -> None:
    assert nearest_fit(as_large_as(name, more), "dinov2_vits14") == f" The one given is as large as that of {name!r}."


def test_the_same_family_comes_first() -> None:
    """MAE's ViT-B/16 is as large as CLIP's to 0.001 %."""
    clip = as_large_as("clip_vitb16_openai")
    assert "'mae_vitb16'" in nearest_fit(clip, "mae_vitl16")
    assert "'clip_vitb16_openai'" in nearest_fit(clip, "clip_vitl14_openai")


@pytest.mark.parametrize("name", ["clip_vitl14_openai", "clip_vitl14_datacompxl"])
def test_nothing_is_said_where_the_size_is_the_asked_teachers(name: str) -> None:
    assert nearest_fit(as_large_as("clip_vitl14_openai"), name) == ""


def test_nothing_is_said_of_what_is_like_none() -> None:
    assert nearest_fit({"a": torch.zeros(3)}, "dinov2_vits14") == ""
    assert nearest_fit(as_large_as("dinov2_vitg14", 0.01), "dinov2_vits14") == ""
