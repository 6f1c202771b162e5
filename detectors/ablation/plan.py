"""Plan: what a study was begun with, and whether it is the same that somebody would go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectors.training.recipe import OF_PLACE
from vfmdistill.errors import InputError


def check_same_plan(plan: Mapping[str, Any], known: Mapping[str, Any], name: str) -> None:
    """Raise unless two plans compare the same: where data, weights and results lie may differ between machines.

    Args:
        plan: with "arms" and "recipe", as JSON holds them.
        known: that the study was begun with.
        name: of the study.

    Raises:
        InputError: arms or recipe are others; all differences are named.
    """
    arms, others = ({arm["name"]: _compared(arm) for arm in some["arms"]} for some in (plan, known))
    different = [f"arm {arm}" for arm in sorted(arms.keys() | others.keys()) if arms.get(arm) != others.get(arm)]
    recipe, other = plan["recipe"], known["recipe"]
    different += [
        f"{field} is {recipe.get(field)!r}, was {other.get(field)!r}"
        for field in sorted((recipe.keys() | other.keys()) - OF_PLACE)
        if recipe.get(field) != other.get(field)
    ]
    if different:
        raise InputError(
            f"study {name!r} was begun otherwise: {'; '.join(different)}. Its runs would not be comparable: repeat the "
            "settings that it began with (only seeds may be added), or name another --study and --output."
        )


def _compared(arm: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in arm["settings"].items() if key not in OF_PLACE}
    return {**arm, "settings": settings}
