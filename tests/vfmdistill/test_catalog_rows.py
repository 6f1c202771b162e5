"""The rows of the table of teachers against the backends themselves."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
from torch.overrides import TorchFunctionMode

from vfmdistill.teachers.catalog import CATALOG, TeacherSpec, loader_for
from vfmdistill.teachers.readout import Dense, Readout

GRIDS = ((20, 20), (10, 15), (17, 23))
SHAPE_IS_KEPT = {
    "uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "zero_", "fill_", "layer_norm", "gelu", "silu",
    "softmax",
}  # fmt: skip
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


def skip_if_the_backend_lacks_it(spec: TeacherSpec) -> None:
    if spec.backend == "open_clip":
        pytest.importorskip("open_clip")
    elif not timm.is_model(spec.model_id.partition(".")[0]):
        pytest.skip(f"timm {timm.__version__} has no {spec.model_id}")


class ShapesOnly(TorchFunctionMode):
    """Skip what changes no shape: initial values, norms and activations are most of the time on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and getattr(func, "__name__", "") in SHAPE_IS_KEPT:
            return args[0]
        return func(*args, **(kwargs or {}))


@functools.cache
def structure(backend: str, architecture: str, dense: Dense, grids: tuple[tuple[int, int], ...]) -> list[Any]:
    """Parameters and maps of a network, before any resizing; on the meta device, where the largest costs no memory."""
    spec = next(spec for spec in CATALOG.values() if (spec.backend, architecture_of(spec)) == (backend, architecture))
    with torch.device("meta"), torch.no_grad(), ShapesOnly():
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
    skip_if_the_backend_lacks_it(spec)
    grids = GRIDS if name in SMALLEST else GRIDS[-1:]
    expected = [spec.params, *((1, spec.embed_dim, *grid) for grid in grids)]
    assert structure(spec.backend, architecture_of(spec), spec.dense, grids) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CATALOG))
def test_a_row_is_what_its_backend_builds_on_every_grid(name: str) -> None:
    spec = CATALOG[name]
    skip_if_the_backend_lacks_it(spec)
    expected = [spec.params, *((1, spec.embed_dim, *grid) for grid in GRIDS)]
    assert structure(spec.backend, architecture_of(spec), spec.dense, GRIDS) == expected


@pytest.mark.parametrize("name", ON_TIMM)
def test_a_row_says_what_timm_says(name: str) -> None:
    spec = CATALOG[name]
    skip_if_the_backend_lacks_it(spec)
    config = timm.get_pretrained_cfg(spec.model_id)
    assert spec.license == config.license
    mean, std = OWN_NORMALISATION.get(name, (None, None))
    assert spec.mean == (config.mean if mean is None else (mean,) * 3)
    assert spec.std == (config.std if std is None else (std,) * 3)
    assert (spec.repository, config.hf_hub_filename) == (None if spec.package else config.hf_hub_id, None)


@pytest.mark.parametrize("name", ON_OPEN_CLIP)
def test_a_row_says_what_open_clip_says(name: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    from open_clip.pretrained import get_pretrained_cfg

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
        config = timm.get_pretrained_cfg(CATALOG[name].model_id, allow_unregistered=True)
        notes = " ".join(getattr(config, "notes", None) or ())
        assert ("QuickGELU" in notes) <= ("_quickgelu_" in CATALOG[name].model_id), name
