import pytest
from support.page import parse_page

from detectors.training.report_markup import Html, folded, join, page, pairs, section, table, tag

EVIL = """</td><script>alert("1 & 2")</script><b title='x'>"""


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c", tag("b", "d")) == "<p>a &lt; b &amp; c<b>d</b></p>"
    assert tag("p", title="\"x\" & 'y'", class_="a", stroke_width=2, id=None) == (
        '<p title="&quot;x&quot; &amp; &#x27;y&#x27;" class="a" stroke-width="2"></p>'
    )
    assert join(("<", None, Html("<"))) == "&lt;<"


@pytest.mark.parametrize(
    "built",
    [tag("p", EVIL), tag("p", "x", title=EVIL), section(EVIL, "x"), section("x", "y", note=EVIL), folded(EVIL, "x"),
     table([EVIL, "a"], [["x", EVIL]]), pairs([(EVIL, EVIL)]), page(EVIL, tag("p", EVIL))],
)  # fmt: skip
def test_nothing_gets_out_of_its_element(built: Html) -> None:
    root = parse_page(built)
    assert not list(root.all("script"))
    assert not list(root.all("b"))
    assert "&lt;script&gt;" in built


def test_what_is_empty_is_left_out() -> None:
    assert section("title", None, Html(""), note="about nothing") == ""
    assert table(["a"], []) == pairs([]) == folded("more") == ""


def test_a_table_puts_words_left_and_numbers_right() -> None:
    root = parse_page(table(["class", "AP"], [["dog", "0.5"]]))
    assert [node.attributes.get("class") for node in root.all("td")] == [None, "n"]
    assert root.rows() == [["dog", "0.5"]]


def test_a_page_loads_and_runs_nothing() -> None:
    root = parse_page(page("title", tag("p", "text")))
    (policy,) = (node for node in root.all("meta") if node.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")
    (style,) = root.all("style")
    assert "prefers-color-scheme: dark" in style.text
    assert not {"url(", "@import", "</"} & set(style.text.split())
    assert "http" not in style.text
