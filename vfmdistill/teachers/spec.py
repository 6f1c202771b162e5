"""TeacherSpec: what a teacher is and what it expects of its images."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from vfmdistill.teachers.readout import Dense

Backend: TypeAlias = Literal["timm", "open_clip", "transformers", "module"]
Rgb: TypeAlias = tuple[float, float, float]
PositiveRgb: TypeAlias = tuple[
    Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
]


# One row of the catalogue: name, name at the backend, patch, width, parameters, (mean, std), licence.
Row: TypeAlias = tuple[str, str, int, int, int, tuple[Rgb, PositiveRgb], str]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


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
        repository: the hub's repository with the weights, where it is known without asking the backend.
        package: the package of the Python index that carries the weights, where it is not a hub that does.
        dense: what makes the map unless `Teacher` is told otherwise: ``"value"`` for CLIP networks that were trained
            by their class token, whose last tokens were never trained to be dense, else ``"tokens"``.
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
    repository: str | None = None
    package: str | None = None
    dense: Dense = "tokens"


def spec_of(
    row: Row, backend: Backend, dense: Dense = "tokens", repository: str | None = None, package: str | None = None
) -> TeacherSpec:
    """Return the spec that a row of the catalogue stands for; a name begins with its family."""
    name, model_id, patch_size, embed_dim, params, (mean, std), license = row
    return TeacherSpec(
        name=name,
        family=name.split("_")[0],
        backend=backend,
        model_id=model_id,
        patch_size=patch_size,
        embed_dim=embed_dim,
        mean=mean,
        std=std,
        params=params,
        license=license,
        repository=repository,
        package=package,
        dense=dense,
    )
