"""The report of an ablation: report.html, report.md and records.jsonl; or written anew from its folder.

python -m detectors.ablation.report runs/ablation
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import CliPositionalArg

from detectors.command_line import parse_options, plain_console
from detectors.training.records import replace_text
from vfmdistill.errors import DistillError, InputError

from .comparison import compare
from .findings import Findings
from .gallery import gallery
from .pictures import Picture
from .record import AblationRecord, TrialRecord
from .report_markdown import report_markdown
from .report_page import report_page

PAGE, MARKDOWN, LINES = "report.html", "report.md", "records.jsonl"


def write_report(record: AblationRecord, findings: Findings, folder: Path, *, pictures: Sequence[Picture] = ()) -> Path:
    """Write the report and what it is made of into a folder, and return the path of its page.

    Args:
        record: the ablation, finished or not.
        findings: what it found.
        folder: receives the three files.
        pictures: for the page.

    Raises:
        RecordError: a file cannot be written; older ones stay.
    """
    head = record.model_dump(mode="json", exclude={"records"})
    lines = [json.dumps(head, ensure_ascii=False), *(run.model_dump_json() for run in record.records)]
    replace_text(folder / LINES, "\n".join([*lines, ""]))
    replace_text(folder / MARKDOWN, report_markdown(record, findings))
    replace_text(folder / PAGE, report_page(record, findings, pictures))
    return folder / PAGE


def read_record(path: Path) -> AblationRecord:
    """Return an ablation from its file of lines: the ablation without its runs, then each run.

    Raises:
        InputError: there is no such file, or it is none of these.
    """
    try:
        head, *runs = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        return AblationRecord(**json.loads(head), records=[TrialRecord.model_validate_json(run) for run in runs])
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); expected the {LINES} of an ablation.") from None
    except (ValueError, TypeError, ValidationError) as error:
        raise InputError(f"{path} is no {LINES} of an ablation of this version: {error}") from None


class Options(BaseModel):
    """The command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: CliPositionalArg[Path] = Field(description=f"of the ablation; it holds {LINES}")
    reference: str | None = Field(None, description="arm of the pictures; None: the best method")
    runs: Path | None = Field(None, description="folder with the runs, ARM/seed_N, for the pictures; None: the same")
    title: str | None = Field(None, description="name of the ablation; None: that of its study")
    note: list[str] = Field([], description="a sentence for the report, instead of those that it has")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the report anew."""
    options = parse_options(
        Options,
        arguments,
        program="python -m detectors.ablation.report",
        description="Write an ablation's report anew, from what is in its folder.",
    )
    console = plain_console()
    record = read_record(options.folder / LINES)
    changed = {"name": options.title, "notes": options.note or None}
    record = record.model_copy(update={key: value for key, value in changed.items() if value is not None})
    findings = compare(record)
    root = options.runs or options.folder
    pictures = gallery(record, findings, root, reference=options.reference, say=console.print)
    path = write_report(record, findings, options.folder, pictures=pictures)
    console.print(str(path), soft_wrap=True)
    return path


if __name__ == "__main__":
    try:
        main()
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
