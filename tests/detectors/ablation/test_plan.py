from __future__ import annotations

from typing import Any

import pytest

from detectors.ablation.plan import check_same_plan
from vfmdistill.errors import InputError


def plan(arm: dict[str, Any] | None = None, **recipe: Any) -> dict[str, Any]:
    arms = [{"name": "off", "settings": {}}, {"name": "gam", "settings": {"rho": "auto", **(arm or {})}}]
    return {"arms": arms, "recipe": {"epochs": 3, "data": "cards", **recipe}}


def test_places_may_differ_between_machines() -> None:
    elsewhere = plan(
        {"teacher_weights": "/b"}, data="/elsewhere", output="out2", workers=4, device="cuda", tracker=None
    )
    check_same_plan(elsewhere, plan({"teacher_weights": "/a"}), "study")
    with pytest.raises(InputError, match="epochs is 4, was 3"):
        check_same_plan(plan(data="/elsewhere", epochs=4), plan(), "study")


def test_everything_that_differs_is_named() -> None:
    with pytest.raises(InputError, match=r"'s' was begun otherwise: arm gam; batch_size is 8, was None; epochs is 4"):
        check_same_plan(plan({"rho": 11.0}, epochs=4, batch_size=8), plan(), "s")
    fewer = plan()
    fewer["arms"].pop()
    with pytest.raises(InputError, match="arm gam"):
        check_same_plan(fewer, plan(), "s")
