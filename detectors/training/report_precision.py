"""The precision in the report, by class and by size of the objects."""

from __future__ import annotations

from .report_curves import Epochs, spark
from .report_files import RunFiles, class_figures, figure_of
from .report_markup import Html, section, table, tag
from .run_text import precision as written

_SIZES = {"all": "", "small (below 32²)": "_small", "medium (to 96²)": "_medium", "large": "_large"}
_TWO_TABLES = 12  # classes from which on there are two tables side by side


def precision(run: RunFiles) -> Html:
    """Return the precision of the best epoch by class and by size of the objects."""
    measured = [line for line in run.epochs if class_figures(line)]
    sizes = _by_size(run)
    if not measured:
        return section("Precision", sizes, note=_which(run.best))
    shown = run.best if run.best in measured else measured[-1]
    history = {line["epoch"]: class_figures(line) for line in measured}
    axis = Epochs(max(run.done, 1))
    rows = []
    ranked = sorted(class_figures(shown).items(), key=lambda item: (item[1] is None, -(item[1] or 0.0), item[0]))
    for name, value in ranked:
        values = {epoch: known for epoch, found in history.items() if (known := found.get(name)) is not None}
        bar = (
            tag("span", tag("span", style=f"width:{100 * value:.1f}%"), class_="bar")
            if value is not None
            else "no objects"
        )
        rows.append((name, bar, written(value), spark(values, axis) if len(values) > 1 else ""))
    half = (len(rows) + 1) // 2 if len(rows) > _TWO_TABLES else len(rows)
    tables = [tag("div", table(("class", "", "AP", "so far"), part, text_columns=2), class_="classes")
              for part in (rows[:half], rows[half:]) if part]  # fmt: skip
    return section("Precision", tag("div", *tables, class_="side"), sizes, note=_which(shown))


def _which(line: dict[str, object] | None) -> str | None:
    if line is None:
        return None
    return (
        f"Averaged weights after epoch {line['epoch']}, on the validation images; AP is the mean over IoU 0.50 to 0.95."
    )


def _by_size(run: RunFiles) -> Html:
    best = run.best
    if best is None:
        return Html("")
    rows = []
    for name, suffix in _SIZES.items():
        average = "AR_100" if not suffix else f"AR{suffix}"
        rows.append((name, *(written(figure_of(best, key)) for key in (f"AP{suffix}", average))))
    return table(("objects, by area in pixels", "AP", "AR at 100"), rows)
