"""How a run was made, for the report: bad steps, cost, data, teacher, recipe, parameter groups, versions, hardware."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from vfmdistill.errors import DistillError

from .recipe import OF_PLACE, Recipe, recipe_for
from .report_files import RunFiles, figure_of
from .report_headline import peak_kind
from .report_markup import Html, folded, join, pairs, section, table, tag
from .run_text import duration, figure, memory


def bad_steps(run: RunFiles) -> Html:
    """Return which epochs had steps without a finite gradient, and how to replay those that were kept."""
    dumps = sorted(path for path in (run.folder / "bad_steps").glob("rank_*/step_*") if path.is_dir())
    rows = [(str(epoch), str(number)) for epoch, number in run.bad_steps.items()]
    commands = [shlex.join(["python", "-m", "detectors.training.replay", str(path)]) for path in dumps]
    return section(
        "Bad steps",
        table(("epoch", "steps left out"), rows, text_columns=2),
        tag("p", "Replay them with:") if dumps else None,
        *(tag("pre", line) for line in commands),
        note="Steps whose loss or gradient was not finite change nothing." if rows or dumps else None,
    )


def cost(run: RunFiles) -> Html:
    """Return what the run cost, and the commands that it was started with."""
    hardware = (run.facts.get("environment") or {}).get("hardware") or {}
    processes = hardware.get("processes") or 1
    items = []
    if run.seconds is not None:
        items.append(("time of all epochs", duration(run.seconds)))
        if hardware.get("gpus"):
            items.append(("GPU hours", figure(run.seconds * processes / 3600, 3)))
    if run.usual_seconds is not None:
        items.append(("time of an epoch", duration(run.usual_seconds)))
    if run.images_per_second is not None:
        items.append(("training speed", f"{figure(run.images_per_second, 3)} images/s"))
    if (peak := run.peak_memory) is not None:
        items.append(("peak memory", f"{memory(peak[0])} {peak_kind(peak[1])}".rstrip()))
    if processes > 1:
        machines = hardware.get("machines") or 1
        items.append(("processes", f"{processes} on {machines} machine{'s' if machines > 1 else ''}"))
    sessions = run.facts.get("sessions") or []
    commands = [session.get("command") for session in sessions] or [run.facts.get("command")]
    rows = [(_moment(s.get("started")), _moment(s.get("ended")), str(s.get("epoch", "")), str(s.get("step", "")))
            for s in sessions]  # fmt: skip
    return section(
        "Cost",
        pairs(items),
        table(("started (UTC)", "ended", "with epoch", "after steps"), rows, text_columns=2),
        *(tag("pre", command) for command in dict.fromkeys(commands) if command),
    )


def _moment(text: Any) -> str:
    return str(text or "–").replace("T", " ").replace("+00:00", "")


def data(run: RunFiles) -> Html:
    """Return what the splits hold."""
    summaries = [summary for summary in run.facts.get("data") or [] if isinstance(summary, Mapping)]
    names = list(dict.fromkeys(name for summary in summaries for name in summary if name != "split"))
    rows = [
        (_words(name), *("–" if name not in summary else _entry(summary[name]) for summary in summaries))
        for name in names
    ]
    defaults = ["training", "validation"] if len(summaries) == 2 else []
    head = [str(summary.get("split") or (defaults[n] if defaults else f"split {n + 1}"))
            for n, summary in enumerate(summaries)]  # fmt: skip
    return section("Data", table(("", *head), rows))


def _entry(value: Any) -> str:
    return tag("span", value, class_="path") if isinstance(value, str) else _amount(value)


def _amount(value: Any) -> str:
    """Return a number with separators, of a list how long it is, else the text."""
    if isinstance(value, (list, tuple, dict)):
        return f"{len(value):,}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _written(value)


def teachers(run: RunFiles) -> Html:
    """Return the teachers and their licences; nothing without one."""
    specs = run.facts.get("teachers") or []
    return section(
        "Teacher" if len(specs) == 1 else "Teachers",
        *(
            pairs((_words("licence" if name == "license" else name), _amount(value)) for name, value in spec.items())
            for spec in specs
        ),
        note="Used in training only: the trained detector holds nothing of it. The licence is that of its weights, as "
        "the place that they come from states it.",
    )


def recipe(run: RunFiles) -> Html:
    """Return the settings: those that differ from the published run first, then all."""
    settings = run.settings
    published = _published(settings)
    changed = [
        (name, _written(value), _written(published[name]))
        for name, value in settings.items()
        if published is not None and name not in OF_PLACE and name in published and published[name] != value
    ]
    if published is None:
        note = None
    elif changed:
        note = f"What differs from the published run of {settings['model']}:"
    else:
        note = f"Every setting is that of the published run of {settings['model']}."
    derived = run.recipe.stages._asdict() if run.recipe is not None else {}
    rows = []
    for name, value in settings.items():
        follows = f" → {derived[name]}" if value is None and name in derived else ""
        rows.append((name, _written(value) + follows, _meaning(name)))
    return section(
        "Recipe",
        table(("setting", "here", "published"), changed, text_columns=3),
        folded("All settings", table(("setting", "value", "meaning"), rows, text_columns=3)),
        folded("As YAML, for --config", tag("pre", _yaml(settings))) if settings else None,
        note=note,
    )


def _published(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return recipe_for(str(settings["model"])).model_dump(mode="json") if "model" in settings else None
    except DistillError:  # a model of another version
        return None


def _meaning(name: str) -> str:
    field = Recipe.model_fields.get(name)
    return (field.description or "") if field is not None else ""


def _yaml(settings: Mapping[str, Any]) -> str:
    import yaml

    kept = {name: value for name, value in settings.items() if name != "resume"}
    return str(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def parameter_groups(run: RunFiles) -> Html:
    """Return the optimizer's groups with their sizes."""
    groups = [group for group in run.facts.get("parameter_groups") or [] if isinstance(group, Mapping)]
    names = ("tensors", "parameters", "learning_rate", "weight_decay")
    rows = [(_written(group.get("name")), *(_amount(group.get(name)) for name in names)) for group in groups]
    totals = [sum(int(figure_of(group, name) or 0) for group in groups) for name in names[:2]]
    if len(rows) > 1:
        rows.append(("together", *(f"{total:,}" for total in totals), "", ""))
    return section("Parameter groups", table(("group", "tensors", "parameters", "learning rate", "weight decay"), rows))


def environment(run: RunFiles) -> Html:
    """Return versions and hardware of the latest start."""
    found = run.facts.get("environment") or {}
    hardware = dict(found.get("hardware") or {})
    gpus = [f"{gpu.get('name')} ({memory(gpu['memory'])})" for gpu in hardware.pop("gpus", None) or []]
    size = hardware.pop("memory", None)
    items = [(_words(name), _amount(value)) for name, value in hardware.items() if value is not None]
    items += [("memory", memory(size))] if size else []
    items += [("GPUs", ", ".join(_counted(gpus)) or "none")] if hardware else []
    items += [("platform", str(found["platform"]))] if found.get("platform") else []
    return join(
        (
            section("Hardware", pairs(items)),
            section("Versions", pairs((name, str(v)) for name, v in (found.get("versions") or {}).items())),
        )
    )


def _counted(names: Iterable[str]) -> list[str]:
    """["A", "A", "B"] → ["2 × A", "B"]."""
    names = list(names)
    return [f"{names.count(name)} × {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _written(value: Any) -> str:
    """Return a setting as YAML would have it, numbers short."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return figure(value, 6)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value))
    return str(value)
