"""The head of the report: what run this is, how far it got, and its main figures."""

from __future__ import annotations

from .report_files import RunFiles, figure_of
from .report_markup import Html, tag
from .run_text import duration, figure, memory, precision


def headline(run: RunFiles) -> Html:
    """Return the name of the run, how far it got, and its main figures."""
    facts = run.settings
    state = "finished" if run.finished else f"not finished: {run.done} of {run.planned} epochs"
    teacher = ", ".join(str(spec.get("name")) for spec in run.facts.get("teachers") or []) or facts.get("teacher")
    about = [f"trained on {facts['data']}"] if facts.get("data") else []
    if facts:
        about.append(f"with {teacher} as teacher" if teacher else "without a teacher")
    about += [f"→ {facts['output']}"] if facts.get("output") else []
    return tag(
        "header",
        tag("p", "vfmdistill · training run", class_="brand"),
        tag("h1", str(facts.get("model") or run.folder.name), " ", tag("span", state, class_=_state_class(run))),
        tag("p", " ".join(about), class_="about"),
        tag("div", *(_tile(*parts) for parts in _headline_figures(run)), class_="tiles"),
    )


def _state_class(run: RunFiles) -> str:
    return "state done" if run.finished else "state open"


def _tile(name: str, value: str, more: str) -> Html:
    return tag("div", tag("span", name), tag("strong", value), tag("small", more))


def _headline_figures(run: RunFiles) -> list[tuple[str, str, str]]:
    tiles = []
    if (best := run.best) is not None:
        more = f" · AP50 {precision(figure_of(best, 'AP50'))}" if "AP50" in best else ""
        tiles.append(("best AP", precision(figure_of(best, "AP")), f"epoch {best['epoch']}{more}"))
    left = run.planned - run.done
    usual = run.usual_seconds
    rest = f"about {duration(left * usual)} left" if left > 0 and usual is not None else ""
    tiles.append(("epochs", f"{run.done} of {run.planned}", rest))
    if run.seconds is not None:
        speed = run.images_per_second
        tiles.append(("time", duration(run.seconds), f"{figure(speed, 3)} images/s" if speed is not None else ""))
    if (peak := run.peak_memory) is not None:
        tiles.append(("peak memory", memory(peak[0]), peak_kind(peak[1])))
    if (weights := run.series("weight")) and (shares := run.series("share")):
        tiles.append(("λ", figure(weights[max(weights)], 3), f"share {figure(shares[max(shares)], 3)} %"))
    if run.series("bad_steps"):
        number = sum(run.bad_steps.values())
        tiles.append(("bad steps", str(number), "left out" if number else "every gradient was finite"))
    return tiles


def peak_kind(kind: str) -> str:
    """Say which memory a peak was measured in."""
    return {"CUDA": "of the first GPU", "process": "resident, first process"}.get(kind, kind)
