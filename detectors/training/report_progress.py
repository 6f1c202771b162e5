"""The curves of the report, with the stages of the run, and all epochs in figures."""

from __future__ import annotations

from itertools import groupby

from .recipe import Recipe
from .report_curves import Epochs, Line, chart
from .report_files import RunFiles, figure_of
from .report_markup import Html, folded, join, table, tag
from .run_text import duration, figure

_COLUMNS = {
    "epoch": "epoch", "loss": "loss", "semantic": "semantic_loss", "λ": "weight", "share, %": "share",
    "learning rate": "learning_rate", "AP": "AP", "AP50": "AP50", "AP75": "AP75",
}  # fmt: skip


def stages(recipe: Recipe | None) -> list[tuple[int, int, str]]:
    """Return (first epoch, last epoch, what happens) of each stage of a run; nothing without a recipe."""
    if recipe is None:
        return []
    plain_from = recipe.stages.plain_from

    def what(epoch: int) -> str:
        augmentation = recipe.augmentation(epoch)
        words = ["photometric distortion, zoom-out, crop"] if augmentation.strong else ["flip and resize only"]
        dense = {"mosaic": augmentation.mosaic, "mixup": augmentation.mixup}
        words += [f"{name} {probability:.0%}" for name, probability in dense.items() if probability]
        words.append("several sizes" if augmentation.multi_scale else "one size")
        if epoch >= plain_from:
            words += ["from the best epoch so far"] if recipe.reload_best else []
            words += ["λ at its default"] if recipe.teacher and recipe.rho != "fixed" else []
        return ", ".join(words)

    found = []
    for _, group in groupby(range(recipe.epochs), lambda epoch: (what(epoch), epoch >= plain_from)):
        numbers = list(group)
        found.append((numbers[0], numbers[-1], what(numbers[0])))
    return found


def curves(run: RunFiles) -> Html:
    """Return all curves, with the stages of the run marked in them."""
    parts = stages(run.recipe)
    shown = run.planned if run.finished or 2 * run.done >= run.planned else max(2 * run.done, 4)
    sessions = [session.get("epoch") for session in run.facts.get("sessions", [])[1:]]
    resumed = sorted({epoch for epoch in sessions if isinstance(epoch, int)})
    axis = Epochs(shown, [first for first, _, _ in parts], resumed, sorted(run.bad_steps))
    losses = [name for name in _names(run) if name.startswith("loss_")]
    kinds = [Line("λ × semantic" if name == "loss_semantic" else name[5:], run.series(name)) for name in losses]
    charts = [
        chart("Average precision", [Line(name, run.series(name)) for name in ("AP", "AP50", "AP75")], axis),
        chart("Loss, all parts together", [Line("loss", run.series("loss"))], axis, from_zero=False),
        chart("Losses by kind", kinds, axis),
        chart("Semantic loss, before λ", [Line("semantic", run.series("semantic_loss"))], axis, from_zero=False),
        chart("λ, weight of the semantic loss", [Line("λ", run.series("weight"))], axis),
        chart("Gradient share of the tap", [Line("share", run.series("share"))], axis, unit=" %", window=_window(run)),
        chart("AP by size of objects", [Line(n, run.series(f"AP_{n}")) for n in ("small", "medium", "large")], axis),
        chart("Learning rate", [Line("rate", run.series("learning_rate"))], axis, marks=_cosine(run)),
        chart("Images per second", [Line("training", run.speeds)], axis),
    ]
    if not any(charts):
        return tag("p", "No epoch is done yet; there will be curves after the first.", class_="note")
    legend = [tag("li", tag("b", f"epoch {first}" if first == last else f"epochs {first}–{last}"), f" {text}")
              for first, last, text in parts]  # fmt: skip
    signs = [tag("span", tag("i", class_="sign resumed"), f"resumed ({len(resumed)} ×)") if resumed else None,
             tag("span", tag("i", class_="sign bad"), "epoch with bad steps") if run.bad_steps else None]  # fmt: skip
    return join(
        (
            tag("ol", *legend, class_="stages") if legend else None,
            tag("p", *signs, class_="signs") if any(signs) else None,
            tag("div", *charts, class_="charts"),
        )
    )


def _names(run: RunFiles) -> list[str]:
    return list(dict.fromkeys(name for line in run.epochs for name in line))


def _window(run: RunFiles) -> dict[int, tuple[float, float]]:
    """Return ρ ± δ by epoch: as it was measured, else as the recipe says."""
    settings = {"rho": run.settings.get("rho"), "delta": run.settings.get("delta")}
    bounds = {}
    for line in run.epochs:
        rho, delta = (figure_of({**settings, **line}, name) for name in ("rho", "delta"))
        if rho is not None and delta is not None and figure_of(line, "share") is not None:
            bounds[line["epoch"]] = (rho - delta, rho + delta)
    return bounds


def _cosine(run: RunFiles) -> list[tuple[float, str]]:
    recipe = run.recipe
    if recipe is None or recipe.final_learning_rate == 1 or recipe.stages.flat_until >= recipe.stages.plain_from:
        return []
    return [(recipe.stages.flat_until, "cosine")]


def epoch_table(run: RunFiles) -> Html:
    """Return all epochs with their figures, folded."""
    columns = {title: run.series(name) for title, name in _COLUMNS.items()}
    written = {title: {epoch: figure(value) for epoch, value in values.items()} for title, values in columns.items()}
    written["bad steps"] = {epoch: str(run.bad_steps.get(epoch, 0)) for epoch in run.series("bad_steps")}
    written["time"] = {epoch: duration(seconds) for epoch, seconds in run.epoch_seconds.items()}
    written["images/s"] = {epoch: figure(speed, 3) for epoch, speed in run.speeds.items()}
    reasons = {line["epoch"]: str(line.get("modulation") or "").replace("_", " ") for line in run.epochs}
    written["λ was"] = {epoch: reason for epoch, reason in reasons.items() if reason}
    shown = {title: texts for title, texts in written.items() if texts}
    rows = [[texts.get(line["epoch"], "–") for texts in shown.values()] for line in run.epochs]
    return folded("Every epoch in figures", table(list(shown), rows, text_columns=0))
