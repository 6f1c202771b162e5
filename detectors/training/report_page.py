"""`report.html`: a run on one page that needs neither network nor server."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from . import report_settings
from .records import replace_text
from .report_files import RunFiles
from .report_headline import headline
from .report_markup import Html, page, section, tag
from .report_precision import precision
from .report_progress import curves, epoch_table

NAME = "report.html"
_LARGEST_PICTURE = 4 * 2**20  # bytes; larger ones would make the page slow to open


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run's folder and return its path.

    It is made from metrics.jsonl, timing.jsonl, run.json, the dumps of bad steps and the pictures in the folder; what
    is not there is left out. The run may be going on, interrupted, resumed or finished.

    Args:
        folder: the run's output folder.

    Raises:
        InputError: the folder holds no run, or a file of it cannot be read.
        RecordError: the page cannot be written; an older one stays.
    """
    run = RunFiles(Path(folder))
    name = f"{run.settings.get('model') or run.folder.name} – training run"
    content = page(
        name,
        headline(run),
        section("Curves", curves(run), epoch_table(run)),
        precision(run),
        _pictures(run),
        report_settings.bad_steps(run),
        report_settings.recipe(run),
        tag(
            "div",
            report_settings.parameter_groups(run),
            report_settings.data(run),
            report_settings.teachers(run),
            report_settings.cost(run),
            report_settings.environment(run),
            class_="columns",
        ),
    )
    path = run.folder / NAME
    replace_text(path, content)
    return path


def _pictures(run: RunFiles) -> Html:
    """Return the pictures that lie in the folder, as parts of the page."""
    figures = []
    for path in sorted(run.folder.glob("*.png")):
        if path.stat().st_size <= _LARGEST_PICTURE:
            content = base64.b64encode(path.read_bytes()).decode()
            image = Html(f'<img src="data:image/png;base64,{content}" alt="">')
            figures.append(tag("figure", image, tag("figcaption", path.stem)))
    return section("Pictures", tag("div", *figures, class_="pictures") if figures else None)
