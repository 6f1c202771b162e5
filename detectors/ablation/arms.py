"""Arm: one way to train, of those that an ablation compares."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Arm(BaseModel):
    """One way to train: the recipe of all arms with some fields replaced.

    Attributes:
        name: unique among the arms of an ablation, for example ``"dinov2_vits14+gam"``.
        kind: ``"off"`` trains without a teacher; ``"control"`` has one that must not help; ``"method"`` is what is
            asked about.
        settings: recipe fields and their values in this arm, JSON-able.
        baseline: name of the arm without a teacher that it is compared with; None for such an arm itself.
        control_of: name of the arm that a control stands beside, None where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["off", "method", "control"]
    settings: dict[str, Any]
    baseline: str | None = None
    control_of: str | None = None
