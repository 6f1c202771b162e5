"""The report of an ablation as Markdown: what stands on the page, without curves and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from . import report_tables as tables
from .comparison import SCOPE
from .findings import Findings
from .record import AblationRecord
from .sheet import Sheet


def report_markdown(record: AblationRecord, findings: Findings) -> str:
    """Return the report.

    Args:
        record: the ablation, finished or not.
        findings: what it found.
    """
    verdicts = [
        f"- {contrast.arm} − {contrast.other}: {contrast.verdict}"
        for contrast in (*findings.contrasts, *findings.controls)
    ]
    differences, controls = tables.difference_sheets(findings)
    parts = [
        f"# {escape(record.name, quote=False)}\n",
        f"**{findings.headline}**\n",
        f"{SCOPE}\n",
        "\n".join([*verdicts, ""]),
        *_written((differences, tables.arms_sheet(findings), controls, tables.class_sheet(findings))),
        *_written((tables.runs_sheet(record), tables.missing_sheet(record), tables.cost_sheet(record, findings))),
        *_written((tables.teacher_sheet(record), tables.settings_sheet(record))),
        *(f"{note}\n" for note in record.notes),
        f"## Do it again\n\n    {record.command}\n" if record.command else "",
    ]
    return "\n".join(part for part in parts if part.strip())


def _written(sheets: Iterable[Sheet]) -> list[str]:
    return [sheet.markdown() for sheet in sheets if sheet.rows]
