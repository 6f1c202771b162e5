"""HTML that cannot be broken by what it shows: text becomes markup only through `tag`, which escapes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *children: str | None, **attributes: str | float | None) -> Html:
    """Return an element; children that are not `Html`, and all attributes, are escaped.

    Args:
        name: of the element.
        children: what stands in it, one after the other; None stands for nothing.
        attributes: with "_" for "-", and "class_" for "class"; one that is None is left out.
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{words}>{join(children)}</{name}>")


def join(parts: Iterable[str | None]) -> Html:
    """Return some parts as one, each that is not `Html` escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts if part is not None))


def section(title: str, *children: str | None, note: str | None = None) -> Html:
    """Return a titled section; nothing where there is nothing to stand in it."""
    body = join(children)
    if not body:
        return body
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note else None, body)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> Html:
    """Return a table that scrolls in itself where it is too wide; nothing without rows.

    Args:
        head: titles of the columns.
        rows: cells, as text or `Html`.
        text_columns: how many columns from the left are words; the others are numbers and stand at the right.
    """
    if not rows:
        return Html("")

    def cells(kind: str, row: Sequence[str]) -> Html:
        return tag(
            "tr",
            *(tag(kind, cell, class_=None if index < text_columns else "n") for index, cell in enumerate(row)),
        )

    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", cells("th", head)), body), class_="scroll")


def pairs(items: Iterable[tuple[str, str]]) -> Html:
    """Return a list of names and what they stand for; nothing where there is none."""
    entries = [join((tag("dt", name), tag("dd", value))) for name, value in items]
    return tag("dl", *entries) if entries else Html("")


def folded(title: str, *children: str | None) -> Html:
    """Return something that opens at a click; nothing where there is nothing in it."""
    body = join(children)
    return tag("details", tag("summary", title), body) if body else body


def page(title: str, *body: str | None, style: str = "") -> Html:
    """Return a whole page, which loads nothing and runs nothing.

    Args:
        title: of the page.
        body: what stands on it.
        style: CSS, after that which all pages share.
    """
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8") + style
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("title", title),
        tag("style", Html(style)),
    )
    html = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
    return join((Html("<!doctype html>\n"), html, "\n"))
