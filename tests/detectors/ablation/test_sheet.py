from __future__ import annotations

from support.page import parse_page

from detectors.ablation.sheet import Sheet

SHEET = Sheet("A title", ("arm", "of", "right"), (("a|b", "<c>", "1.0"), ("d", "e\\\nf", "2.0")), text_columns=2)


def test_markdown_keeps_what_would_end_a_cell() -> None:
    assert SHEET.markdown() == (
        "## A title\n\n| arm | of | right |\n|---|---|---:|\n| a\\|b | <c> | 1.0 |\n| d | e\\\\ f | 2.0 |\n"
    )


def test_html_has_the_same_cells_with_numbers_at_the_right() -> None:
    root = parse_page(SHEET.html())
    assert root.rows() == [["a|b", "<c>", "1.0"], ["d", "e\\\nf", "2.0"]]
    assert [cell.text for cell in root.all("td", "n")] == ["1.0", "2.0"]


def test_a_note_stands_above_the_table() -> None:
    noted = Sheet("A title", ("arm",), (("a",),), note="How to read it.")
    assert noted.markdown().startswith("## A title\n\nHow to read it.\n\n| arm |\n|---|\n")
    assert [node.text for node in parse_page(noted.html()).all("p")] == ["How to read it."]


def test_a_terminal_gets_every_row() -> None:
    shown = SHEET.rich()
    assert shown.row_count == 2
    assert [column.justify for column in shown.columns] == ["left", "left", "right"]
