"""A small XML tree whose elements know their line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat


@dataclass(slots=True)
class Element:
    """An element: its tag, the line it begins in, its text and the elements in it."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, tag: str) -> Element | None:
        """Return the first element of that tag directly in this one."""
        return next((child for child in self.children if child.tag == tag), None)

    def value(self, tag: str, default: str = "") -> str:
        """Return the text of the first element of that tag directly in this one, without space around it."""
        found = self.find(tag)
        return default if found is None else found.text.strip()


def parse_xml(data: bytes) -> Element:
    """Return the outermost element of an XML document.

    Raises:
        ValueError: it is not well-formed, or declares entities, which annotations have no use for and attacks have.
    """
    document = Element("", 0)
    open_elements = [document]

    def start(tag: str, _: Any) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def text(data: str) -> None:
        open_elements[-1].text += data

    def entity(*_: Any) -> None:
        raise ValueError("entity declarations are not accepted")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_elements.pop()
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"no well-formed XML: {error}") from None
    return document.children[0]
