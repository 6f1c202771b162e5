"""DoctorReport: what the doctor found, as a table and as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, computed_field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detectors.data.problems import Severity

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_SHOWN = 3  # places of a finding in the table; the JSON has them all


class Finding(BaseModel):
    """All of one kind in one split, or in several that it concerns together.

    Attributes:
        severity: "error", "warning" or "note"; see `Kind`.
        kind: a name for programs.
        split: "train", "val" …, or several joined by " + ".
        annotations: what the annotations are called in messages.
        heading: what it is.
        advice: what to do about it.
        places: every image, annotation or class concerned.
        count: how many these are.
    """

    model_config = ConfigDict(frozen=True)

    severity: Severity
    kind: str
    split: str
    annotations: str
    heading: str
    advice: str
    places: list[str]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return len(self.places)


class SplitContent(BaseModel):
    """What a split holds: images and boxes that are sound, and how many boxes each class has."""

    model_config = ConfigDict(frozen=True)

    annotations: str
    images: int
    boxes: int
    classes: dict[str, int]


class DoctorReport(BaseModel):
    """What the doctor found in a data set; errors come first.

    Attributes:
        data: the data set.
        splits: what each split holds.
        findings: everything that is wrong, and what is worth knowing.
    """

    model_config = ConfigDict(frozen=True)

    data: str
    splits: dict[str, SplitContent]
    findings: list[Finding]

    def status(self, strict: bool = False) -> int:
        """Return the exit status: 1 where there are errors, and if `strict` warnings, else 0."""
        serious = ("error", "warning") if strict else ("error",)
        return int(any(finding.severity in serious for finding in self.findings))

    def to_json(self) -> str:
        """Return all of it as JSON."""
        return self.model_dump_json(indent=2)

    def table(self) -> Table:
        """Return the findings, by severity."""
        table = Table(show_lines=False, pad_edge=False)
        table.add_column("severity")
        table.add_column("split")
        table.add_column("number", justify="right")
        table.add_column("what was found, where, and what to do")
        for severity in SEVERITIES:
            for finding in self.findings:
                if finding.severity == severity:
                    table.add_row(
                        Text(severity, _STYLES[severity]), finding.split, str(finding.count), _describe(finding)
                    )
            table.add_section()
        return table

    def show(self, console: Console) -> None:
        """Print what each split holds, the table, and how many findings there are of each severity."""
        for name, split in self.splits.items():
            console.print(
                f"{name}: {split.images} images, {split.boxes} boxes, {len(split.classes)} classes "
                f"({split.annotations})",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
        if self.findings:
            console.print(self.table())
        numbers = [sum(finding.severity == severity for finding in self.findings) for severity in SEVERITIES]
        console.print(
            ", ".join(f"{number} {name}{'s' * (number != 1)}" for number, name in zip(numbers, SEVERITIES, strict=True))
        )


def _describe(finding: Finding) -> Text:
    text = Text(finding.heading, style="bold")
    shown = finding.places[:_SHOWN]
    if finding.count > _SHOWN:
        shown.append(f"and {finding.count - _SHOWN} more")
    text.append("".join(f"\n  {place}" for place in shown), style="not bold")
    return text.append(f"\n→ {finding.advice}", style="not bold dim")
