"""The page of an ablation: one HTML file that needs neither network nor server nor script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectors.training.report_markup import Html, folded, page, pairs, section, tag
from detectors.training.run_text import memory

from . import report_tables as tables
from .comparison import SCOPE
from .findings import Findings
from .pictures import Picture
from .record import AblationRecord
from .report_curves import precision_curves, teaching_curves
from .report_forest import forest
from .sheet import Sheet

_MOST_CLASSES = 12  # with more, the table of classes is folded away


def report_page(record: AblationRecord, findings: Findings, pictures: Sequence[Picture] = ()) -> Html:
    """Return the page.

    Args:
        record: the ablation, finished or not.
        findings: what it found.
        pictures: of features and detections, in the order that they are shown.
    """
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    kinds = {arm.name: arm.kind for arm in record.arms}
    differences, controls = tables.difference_sheets(findings)
    classes = tables.class_sheet(findings)
    plot = forest("Difference in AP", findings.contrasts, kinds)
    versus = forest("Method minus control", findings.controls, {})
    return page(
        f"{record.name} – ablation",
        _head(record, findings),
        section("Does it help?", plot, _verdicts(findings), _sheet(differences), note=SCOPE),
        _own_section(tables.arms_sheet(findings)),
        section(controls.title, versus, _sheet(controls)),
        section(
            classes.title,
            folded("AP of every class", classes.html()) if len(classes.rows) > _MOST_CLASSES else _sheet(classes),
        ),
        section(
            "AP over the epochs",
            precision_curves(record),
            note="Means over the seeds that both arms have, within the lowest and the highest of them. The schedule "
            "ends with the last epoch: an arm that is ahead in between has gained nothing yet.",
        ),
        section("λ and share", teaching_curves(record)),
        section("Pictures", *map(_picture, pictures)),
        _own_section(tables.runs_sheet(record)),
        _own_section(tables.missing_sheet(record)),
        _own_section(tables.cost_sheet(record, findings)),
        _own_section(tables.teacher_sheet(record)),
        _settings(record),
        _environment(record),
        _commands(record),
        style=style,
    )


def _head(record: AblationRecord, findings: Findings) -> Html:
    done, planned = len(record.records), len(record.records) + len(record.missing)
    state = "finished" if done == planned else f"not finished: {done} of {planned} runs"
    seeds = sorted({run.seed for run in record.records})
    about = [str(record.recipe[name]) for name in ("model", "data") if record.recipe.get(name) is not None]
    return tag(
        "header",
        tag("p", "vfmdistill · ablation", class_="brand"),
        tag("h1", record.name, " ", tag("span", state, class_="state done" if done == planned else "state open")),
        tag("p", " · ".join([*about, f"{len(record.arms)} arms", f"{len(seeds)} seeds"]), class_="about"),
        tag("p", findings.headline, class_="verdict"),
    )


def _verdicts(findings: Findings) -> Html:
    items = [
        tag("li", tag("b", f"{contrast.arm} − {contrast.other}: "), contrast.verdict)
        for contrast in (*findings.contrasts, *findings.controls)
    ]
    return tag("ul", *items, class_="verdicts") if items else Html("")


def _sheet(sheet: Sheet) -> Html:
    return sheet.html() if sheet.rows else Html("")


def _own_section(sheet: Sheet) -> Html:
    return section(sheet.title, _sheet(sheet))


def _picture(picture: Picture) -> Html:
    panels = [
        tag("figure", Html(f'<img src="data:image/jpeg;base64,{base64.b64encode(content).decode()}" alt="">'),
            tag("figcaption", name) if name else None)
        for name, content in picture.panels
    ]  # fmt: skip
    return tag(
        "div",
        tag("h3", picture.title),
        tag("p", picture.caption, class_="note") if picture.caption else None,
        tag("div", *panels, class_="panels" if len(panels) > 1 else None),
    )


def _settings(record: AblationRecord) -> Html:
    recipe = [(name, _written(value)) for name, value in record.recipe.items()]
    return section(
        "Settings",
        *(tag("p", note) for note in record.notes),
        _sheet(tables.settings_sheet(record)),
        folded("The recipe that all arms share", pairs(recipe)),
    )


def _environment(record: AblationRecord) -> Html:
    """Return versions and hardware; each of several, where runs differ in them."""
    found = [run.environment for run in record.records if run.environment]
    hardware = [_hardware(environment.get("hardware") or {}) for environment in found]
    items = [("hardware", text) for text in dict.fromkeys(hardware)]
    items += [("platform", text) for text in _different(environment.get("platform") for environment in found)]
    names = dict.fromkeys(name for environment in found for name in environment.get("versions") or {})
    for name in names:
        versions = _different((environment.get("versions") or {}).get(name) for environment in found)
        items.append((name, ", ".join(versions)))
    return section("Hardware and versions", pairs(items))


def _hardware(facts: dict[str, Any]) -> str:
    gpus = [str(gpu.get("name")) for gpu in facts.get("gpus") or []]
    parts = [", ".join(gpus)] if gpus else []
    parts += [f"{facts.get('cores')} cores of {facts.get('cpu')}"] if facts.get("cpu") else []
    parts += [memory(facts["memory"])] if facts.get("memory") else []
    return ", ".join(parts) or "unknown"


def _different(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _commands(record: AblationRecord) -> Html:
    runs = "\n".join(run.command for run in record.records if run.command)
    return section(
        "Do it again",
        tag("pre", record.command) if record.command else None,
        folded("Single runs, each from its folder", tag("pre", runs)) if runs else None,
    )


def _written(value: Any) -> str:
    return "–" if value is None else str(value)
