"""The catalogue of teachers as a table, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfmdistill.errors import unknown_name
from vfmdistill.teachers.catalog import TeacherSpec, list_teachers, teacher_spec
from vfmdistill.teachers.on_disk import weights_on_disk

if TYPE_CHECKING:
    from rich.table import Table


def find_teachers(pattern: str = "*") -> list[TeacherSpec]:
    """Return the teachers whose name matches a shell-style pattern; a word without wildcards matches anywhere in it.

    Raises:
        UnknownNameError: there is none; the nearest names are listed.
    """
    anywhere = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    names = list_teachers(anywhere)
    if not names:
        raise unknown_name("teacher", pattern, list_teachers(), "'vfmdistill teachers' lists all names.")
    return [teacher_spec(name) for name in names]


def teachers_as_json(specs: Sequence[TeacherSpec]) -> str:
    """Return an array of objects: the fields of `TeacherSpec`, and ``weights``, a path on this machine or null."""
    rows = []
    for spec in specs:
        path = weights_on_disk(spec)
        rows.append({**spec.model_dump(mode="json"), "weights": None if path is None else str(path)})
    return json.dumps(rows, indent=2, ensure_ascii=False)


def teachers_as_table(specs: Sequence[TeacherSpec]) -> Table:
    """Return a table with a row for each teacher, for `rich` to print."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("name", no_wrap=True, overflow="fold")
    for heading in ("width", "patch", "parameters"):
        table.add_column(heading, justify="right", no_wrap=True)
    # In a narrow terminal long licences break first.
    table.add_column("licence", min_width=10, overflow="fold")
    table.add_column("gated", min_width=5)
    table.add_column("on this machine", min_width=7)
    for spec in specs:
        table.add_row(
            spec.name,
            str(spec.embed_dim),
            str(spec.patch_size),
            f"{spec.params / 1e6:,.1f} M",
            spec.license,
            "gated" if spec.gated else "",
            "yes" if weights_on_disk(spec) else "",
        )
    return table
