"""An HTML page as a tree, for tests that look into one."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Node:
    """An element: its name, its attributes, and elements and text in it."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name, self.attributes = name, attributes
        self.children: list[Node | str] = []

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str | None = None, class_: str | None = None) -> Iterator[Node]:
        """Return the elements of a name, or with a class, in it."""
        for child in self.children:
            if isinstance(child, Node):
                words = child.attributes.get("class", "").split()
                if name in (None, child.name) and (class_ is None or class_ in words):
                    yield child
                yield from child.all(name, class_)

    def section(self, title: str) -> Node:
        """Return the section of a title."""
        return next(node for node in self.all("section") if next(node.all("h2")).text == title)

    def figure(self, title: str) -> Node:
        """Return the figure of a caption."""
        return next(node for node in self.all("figure") if next(node.all("figcaption")).text == title)

    def rows(self) -> list[list[str]]:
        """Return the texts of all rows of all tables in it, without their heads."""
        return [[cell.text for cell in row.all("td")] for row in self.all("tr") if any(True for _ in row.all("td"))]

    def pairs(self) -> dict[str, str]:
        """Return names and values of all lists of pairs in it."""
        return {a.text: b.text for a, b in zip(self.all("dt"), self.all("dd"), strict=True)}


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        closed = self.open.pop()
        if closed.name != tag:
            raise AssertionError(f"<{closed.name}> is closed by </{tag}>")

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse_page(content: str) -> Node:
    """Return the root of a page; AssertionError where an element is not closed."""
    builder = _Builder()
    builder.feed(content)
    builder.close()
    if len(builder.open) != 1:
        raise AssertionError(f"not closed: {[node.name for node in builder.open[1:]]}")
    return builder.open[0]
