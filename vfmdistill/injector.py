"""SemanticInjector: the Deep Semantic Injector (DSI) of RT-DETRv4."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError, unknown_name
from vfmdistill.objectives import OBJECTIVES
from vfmdistill.projectors import PROJECTORS


class SemanticInjector(nn.Module):
    """Projects a student's map to the teacher's width and compares the two, cell by cell (arXiv 2510.25257, DSI).

    Args:
        student_dim: channels of the student's map.
        teacher_dim: channels of the teacher's map.
        projector: "linear" (reference), "mlp", "conv", or a module that maps (N, student_dim, h, w) to
            (N, teacher_dim, h, w).
        objective: "cosine" (reference), "mse", "smooth_l1", "relational", "channel_wise", "pearson", or a function of
            two maps (N, teacher_dim, h, w), student first, that returns a scalar, and may take the cells' `weights`.

    Raises:
        UnknownNameError: the projector or the objective has no such name.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        projector: str | nn.Module = "linear",
        objective: str | Callable[..., Tensor] = "cosine",
    ) -> None:
        super().__init__()
        if isinstance(projector, str):
            if projector not in PROJECTORS:
                raise unknown_name("projector", projector, PROJECTORS, "A module may be given instead.")
            projector = PROJECTORS[projector](student_dim, teacher_dim)
        if isinstance(objective, str):
            if objective not in OBJECTIVES:
                raise unknown_name("objective", objective, OBJECTIVES, "A function may be given instead.")
            objective = OBJECTIVES[objective]
        self.student_dim = student_dim
        self.teacher_dim = teacher_dim
        self.projector = projector
        self.objective = objective

    @property
    def takes_weights(self) -> bool:
        """Whether the objective can let some cells count more than others."""
        return _takes_weights(self.objective)

    def forward(self, student_map: Tensor, teacher_map: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the objective as a scalar.

        The projector follows the caller's autocast; the objective is computed in float32 at least.

        Args:
            student_map: (N, student_dim, h, w).
            teacher_map: (N, teacher_dim, h, w), the same images on the same grid.
            weights: (N, h, w), how much each cell counts, 0 where it is below; None is the reference's: all alike.

        Raises:
            InputError: the maps differ in images or grid, or have another number of channels than promised; the weights
                are not those of their cells, or the objective takes none.
        """
        self._check(student_map, teacher_map)
        projected = self.project(student_map)
        dtype = torch.promote_types(projected.dtype, torch.float32)
        with torch.autocast(device_type=projected.device.type, enabled=False):
            if weights is None:
                return self.objective(projected.to(dtype), teacher_map.to(dtype))
            self._check_weights(weights, student_map)
            return self.objective(
                projected.to(dtype), teacher_map.to(dtype), weights=weights.detach().to(dtype).clamp(min=0)
            )

    def project(self, student_map: Tensor) -> Tensor:
        """Return the student's map (N, student_dim, h, w) at the teacher's width: (N, teacher_dim, h, w)."""
        parameter = next(self.projector.parameters(), None)
        projected: Tensor = self.projector(student_map if parameter is None else student_map.to(parameter.dtype))
        return projected

    def extra_repr(self) -> str:
        """Show what the projector's own line does not: widths and objective."""
        dims = f"student_dim={self.student_dim}, teacher_dim={self.teacher_dim}"
        return f"{dims}, objective={_name(self.objective)}"

    def _check(self, student_map: Tensor, teacher_map: Tensor) -> None:
        for whose, feature_map, dim in (
            ("student", student_map, self.student_dim),
            ("teacher", teacher_map, self.teacher_dim),
        ):
            if feature_map.ndim != 4 or feature_map.shape[1] != dim:
                raise InputError(
                    f"the {whose} map has shape {tuple(feature_map.shape)}; expected (N, {dim}, h, w). "
                    "If the network has changed since, build a new injector for it."
                )
        if student_map.shape[0] != teacher_map.shape[0] or student_map.shape[2:] != teacher_map.shape[2:]:
            raise InputError(
                f"student map {tuple(student_map.shape)} and teacher map {tuple(teacher_map.shape)} differ in images "
                "or grid; ask the teacher for the student's grid: teacher(images, grid=student_map.shape[2:])."
            )

    def _check_weights(self, weights: Tensor, student_map: Tensor) -> None:
        if not self.takes_weights:
            able = ", ".join(name for name, objective in OBJECTIVES.items() if _takes_weights(objective))
            raise InputError(
                f"weights of the cells, but the objective {_name(self.objective)} takes none. Use one that does "
                f"({able}, or a function with a parameter `weights`), or an adapter without foreground()."
            )
        cells = (student_map.shape[0], *student_map.shape[2:])
        if not isinstance(weights, Tensor):
            raise InputError(f"weights: a {type(weights).__name__}; expected a tensor {cells}, a number for each cell.")
        if weights.shape != cells or weights.device != student_map.device or weights.is_complex():
            raise InputError(
                f"weights of shape {tuple(weights.shape)} and type {weights.dtype} on {weights.device}; expected "
                f"{tuple(cells)}, a number of 0 or above for each cell of the map, on {student_map.device}."
            )


def _takes_weights(objective: Callable[..., Tensor]) -> bool:
    try:
        return "weights" in inspect.signature(getattr(objective, "forward", objective)).parameters
    except ValueError:  # built-in functions may have none
        return False


def _name(objective: Callable[..., Tensor]) -> str:
    return getattr(objective, "__name__", type(objective).__name__)
