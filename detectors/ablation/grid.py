"""The arms of a grid: teachers × components × any recipe field, and controls beside them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from detectors.training.recipe import OF_PLACE, Recipe, sentences
from vfmdistill.errors import InputError, unknown_name

from .arms import Arm

Component: TypeAlias = Literal["off", "fixed", "gam"]
CONTROLS = ("random", "shuffled")

# Fields that an arm without a teacher does not read: it stands beside all their values.
_OF_TEACHING = frozenset(
    {
        "tap", "projector", "objective", "distill_weight", "rho", "delta", "distill_default_weight",
        *(name for name in Recipe.model_fields if name.startswith("teacher")),
    }
)  # fmt: skip
# Fields that are not read where λ is fixed.
_OF_GAM = frozenset({"rho", "delta", "distill_default_weight"})
# The grid's own: it says which teacher an arm has, and each run has a seed and a place of its own.
_OWN = OF_PLACE | {"teacher", "teacher_weights", "teacher_control", "seed"}


class Grid(BaseModel):
    """What an ablation varies.

    Attributes:
        teachers: names, each as the recipe's `teacher` field takes it.
        files: local weights by name of the teacher.
        components: ``"off"``: no teacher; ``"fixed"``: the injector (DSI) with a fixed λ, the recipe's
            `distill_weight`; ``"gam"``: λ moved by GAM, with the recipe's ρ, or ``"auto"`` where that is ``"fixed"``.
        controls: ``"random:TEACHER"`` (random weights) and ``"shuffled:TEACHER"`` (maps of other images), with GAM
            where that is among the components.
        vary: values of other recipe fields, by field; every arm is taken with every combination. Fields that only
            concern the teaching leave the arm without a teacher as it is, and those of GAM the arms with a fixed λ.
        skip: names of arms to leave out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teachers: tuple[str, ...] = ()
    files: Mapping[str, Path] = {}
    components: tuple[Component, ...] = ("off", "fixed", "gam")
    controls: tuple[str, ...] = ()
    vary: Mapping[str, tuple[Any, ...]] = {}
    skip: tuple[str, ...] = ()

    def arms(self, recipe: Recipe) -> list[Arm]:
        """Return the arms: those without a teacher first, then methods, then controls.

        Args:
            recipe: that all arms share.

        Raises:
            InputError: there is no arm to compare with, two arms are the same, or a value does not fit its field.
            UnknownNameError: there is no such arm to skip.
        """
        if "off" not in self.components:
            raise InputError(f"components {', '.join(self.components) or 'none'}: add 'off', which the others are "
                             "compared with.")  # fmt: skip
        methods = [(name, part, None) for name in self.teachers for part in ("fixed", "gam") if part in self.components]
        part_of_controls = "fixed" if "fixed" in self.components and "gam" not in self.components else "gam"
        controls = [(name, part_of_controls, kind) for kind, name in map(_control, self.controls)]
        if not methods and not controls:
            raise InputError("nothing to compare with 'off': name --teachers, and 'fixed' or 'gam' as components.")
        unused = self.files.keys() - {name for name, _, _ in (*methods, *controls)}
        if unused:
            raise InputError(f"weights for {', '.join(sorted(unused))}, which is no teacher of this grid.")
        if "fixed" in self.vary.get("rho", ()):
            raise InputError("vary rho: 'fixed' is a component; name it in --components, and other values of rho here.")
        varied = [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]
        arms = [self._off(some) for some in _without(_OF_TEACHING, varied)]
        for name, part, kind in (*methods, *controls):
            for some in varied if part == "gam" else _without(_OF_GAM, varied):
                arms.append(self._taught(name, part, kind, some, recipe))
        for name in self.skip:
            if name not in {arm.name for arm in arms}:
                raise unknown_name("arm to skip", name, [arm.name for arm in arms])
            if name in {arm.baseline for arm in arms}:
                raise InputError(f"the arm {name} cannot be skipped: others are compared with it.")
        arms = [arm for arm in arms if arm.name not in self.skip]
        names = {arm.name for arm in arms}
        arms = [arm if arm.control_of in names else arm.model_copy(update={"control_of": None}) for arm in arms]
        folders: dict[Path, str] = {}
        for arm in arms:
            folder = folder_of(arm.name, 0)
            if folders.get(folder) == arm.name:
                raise InputError(f"the arm {arm.name} is there twice; give every teacher, control and value once.")
            if folder in folders:
                raise InputError(f"the arms {folders[folder]} and {arm.name} have the same folder; leave out one.")
            folders[folder] = arm.name
        twins: dict[str, str] = {}
        for arm in arms:
            twin = twins.setdefault(check_arm(recipe, arm).model_dump_json(), arm.name)
            if twin != arm.name:
                raise InputError(f"the arms {twin} and {arm.name} are one: leave out one of the values.")
        return arms

    def _off(self, some: Mapping[str, Any]) -> Arm:
        return Arm(name=_name("off", some), kind="off", settings={"teacher": None, **some})

    def _taught(
        self,
        name: str,
        part: str,
        kind: str | None,
        some: Mapping[str, Any],
        recipe: Recipe,
    ) -> Arm:
        rho: Any = "fixed" if part == "fixed" else ("auto" if recipe.rho == "fixed" else recipe.rho)
        settings: dict[str, Any] = {"teacher": name, "rho": rho}
        if kind != "random" and name in self.files:
            settings["teacher_weights"] = str(self.files[name])
        if kind is not None:
            settings["teacher_control"] = kind
        return Arm(
            name=_name(f"{name}+{part}" if kind is None else f"{kind}:{name}+{part}", some),
            kind="method" if kind is None else "control",
            settings=settings | dict(some),
            baseline=_name("off", *_without(_OF_TEACHING, [some])),
            control_of=None if kind is None else _name(f"{name}+{part}", some),
        )


def check_arm(recipe: Recipe, arm: Arm, **fields: Any) -> Recipe:
    """Return the recipe of a run of an arm: the shared one with the arm's settings, and with `fields`.

    Raises:
        InputError: a value does not fit its field.
    """
    try:
        return Recipe.model_validate({**recipe.model_dump(), **arm.settings, **fields})
    except ValidationError as error:
        raise InputError(f"arm {arm.name}: {sentences(error)}") from None


def parse_vary(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Return values by recipe field of ``"FIELD=VALUE,VALUE"``; a group before the field, ``injector.``, says nothing.

    Values are read as JSON where they are JSON (numbers, true, null, [1,2]), else as words.

    Raises:
        InputError: a text has another form, a field is given twice, or is the grid's own.
        UnknownNameError: there is no such field.
    """
    vary: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        field = key.strip().rpartition(".")[2].replace("-", "_")
        found = _values(values)
        if not equals or not field or not found or "" in found:
            raise InputError(f"vary {text!r}; expected FIELD=VALUE,VALUE.")
        if field not in Recipe.model_fields:
            raise unknown_name("recipe field", field, Recipe.model_fields)
        if field in _OWN:
            raise InputError(f"vary {field}: that is what the grid itself sets; use --teachers, --controls or --seeds.")
        if field in vary:
            raise InputError(f"vary {field} is given twice; give all its values at once.")
        vary[field] = found
    return vary


def folder_of(arm: str, seed: int) -> Path:
    """Return the folder of a run, relative to the ablation's."""
    return Path(re.sub(r"[^\w.+=,-]", "_", arm)) / f"seed_{seed}"


def _values(text: str) -> tuple[Any, ...]:
    try:
        return tuple(json.loads(f"[{text}]"))
    except ValueError:  # words, or words among others
        return tuple(_value(part.strip()) for part in re.split(r",(?![^\[]*\])", text))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _control(text: str) -> tuple[str, str]:
    kind, colon, name = text.partition(":")
    if kind not in CONTROLS or not colon or not name:
        raise InputError(f"control {text!r}; expected random:TEACHER or shuffled:TEACHER.")
    return kind, name


def _name(name: str, some: Mapping[str, Any]) -> str:
    words = (f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in some.items())
    return ",".join([name, *words])


def _without(fields: Container[str], varied: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is left without some fields, once each."""
    left = [{key: value for key, value in some.items() if key not in fields} for some in varied]
    return [some for index, some in enumerate(left) if some not in left[:index]]
