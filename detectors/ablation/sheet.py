"""A table of text, written as Markdown, as HTML or for a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from detectors.training.report_markup import Html, join, table, tag


@dataclass(frozen=True)
class Sheet:
    """A table as text.

    Attributes:
        title: what stands in it.
        header: titles of the columns.
        rows: of cells.
        text_columns: how many columns from the left are words; the others are numbers.
        note: what has to be known to read it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""

    def markdown(self) -> str:
        """Return it as Markdown, under its title."""
        words = self.text_columns
        align = "|".join([*["---"] * words, *["---:"] * (len(self.header) - words)])
        rows = [" | ".join(_escaped(cell) for cell in row) for row in (self.header, *self.rows)]
        body = "\n".join(f"| {row} |" for row in rows[1:])
        note = f"{self.note}\n\n" if self.note else ""
        return f"## {self.title}\n\n{note}| {rows[0]} |\n|{align}|\n{body}\n"

    def html(self) -> Html:
        """Return its note and itself, without its title."""
        note = tag("p", self.note, class_="note") if self.note else None
        return join((note, table(self.header, self.rows, text_columns=self.text_columns)))

    def rich(self) -> Table:
        """Return it for a terminal, without its title."""
        found = Table(box=None, pad_edge=False)
        for number, name in enumerate(self.header):
            found.add_column(name, justify="right" if number >= self.text_columns else "left")
        for row in self.rows:
            found.add_row(*row)
        return found


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
