"""What was found in a student, as a table."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from vfmdistill.inspection import Candidate, Inspection

_LINE = 160  # characters


def shown_candidates(inspection: Inspection) -> list[Candidate]:
    """Leave out what is of little use as a tap: what has no parameters, and layers of a module that is listed."""
    paths = {candidate.path for candidate in inspection.candidates}
    inner = {candidate.path for candidate in inspection.candidates if _parent(candidate.path) in paths}
    holders = {_parent(path) for path in paths}
    return [
        candidate
        for candidate in inspection.candidates
        if candidate in inspection.chosen
        or (candidate.params and (candidate.path not in inner or candidate.path in holders))
    ]


def inspection_as_table(inspection: Inspection, every: bool = False) -> Table:
    """Return a table for `rich` to print: of the candidates that are `shown_candidates`, or of every one."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    table.add_column("path", overflow="fold")
    table.add_column("type", overflow="fold")
    table.add_column("output", no_wrap=True)
    table.add_column("stride", justify="right", no_wrap=True)
    table.add_column("layout", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for candidate in inspection.candidates if every else shown_candidates(inspection):
        table.add_row(
            "→" if candidate in inspection.chosen else "",
            candidate.path or "(the student)",
            candidate.type,
            " × ".join(map(str, candidate.shape)),
            f"{candidate.stride:.3g}",
            candidate.layout,
            f"{candidate.params:,}",
            candidate.note,
        )
    return table


def closing_line(inspection: Inspection) -> str:
    """Say what `attach` takes, and why."""
    taken = ", ".join(repr(candidate.path) for candidate in inspection.chosen)
    return f"attach takes {taken or 'no tap'}: {inspection.reason}"


def inspection_as_text(inspection: Inspection) -> str:
    """Return the table and the closing line as plain text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=_LINE, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(inspection_as_table(inspection))
        console.print(closing_line(inspection), soft_wrap=True, end="")
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _parent(path: str) -> str | None:
    return path.rpartition(".")[0] if path else None
