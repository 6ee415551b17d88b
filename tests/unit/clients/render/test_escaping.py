"""Text of users stays text in every format that it is shown in."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from layerdrift.render import escaping

MARKUP = [
    "**bold**",
    "[text](https://x)",
    "![](x)",
    "`code`",
    "# heading",
    "a | b",
    "<b>x</b>",
    "~~no~~",
    "1. one",
    "&lt;",
]


def rendered(text: str) -> str:
    page: str = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)
    return page


@pytest.mark.parametrize("text", MARKUP)
def test_in_markdown_nothing_is_markup(text: str) -> None:
    page = rendered(f"x {escaping.markdown(text)}")
    assert set(re.findall(r"<(\w+)", page)) == {"p"}
    assert "\\" not in page


@pytest.mark.parametrize("text", ["ask @team", "see #12", "@a,#b"])
def test_in_markdown_nobody_is_called_and_no_issue_is_named(text: str) -> None:
    assert not re.search(r"[@#]\w", rendered(escaping.markdown(text)))


def test_in_markdown_a_sign_that_calls_nobody_stays_as_it_is() -> None:
    assert rendered(escaping.markdown("5 # 6 @ home")) == "<p>5 # 6 @ home</p>\n"


def test_lines_become_one_line_in_markdown() -> None:
    assert escaping.markdown("one\n\n  two\tthree ") == "one two three"


def test_a_code_span_ends_only_at_its_end() -> None:
    assert rendered(escaping.markdown_code("a`b\n``c")) == "<p><code>a'b ''c</code></p>\n"


def test_a_message_of_several_lines_keeps_them_and_moves_no_cursor() -> None:
    assert escaping.lines("one\r\n\x1b[2Jtwo\n") == "one\\r\n\\x1b[2Jtwo\n"


def test_a_cell_of_a_table_is_neither_styled_nor_broken() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(escaping.terminal("[red]a[/red]\nb\u202e"), highlight=False)
    assert capture.get() == "[red]a[/red]\\nb\\u202e\n"


@given(st.text(max_size=30))
def test_any_text_can_stand_in_xml(text: str) -> None:
    element = ET.Element("a", {"b": escaping.xml(text)})
    element.text = escaping.xml(text)
    read = ET.fromstring(ET.tostring(element, encoding="unicode"))
    assert (read.text or "") == re.sub(r"\r\n?", "\n", escaping.xml(text))


@pytest.mark.parametrize(("text", "kept"), [("a\x00b\x0c", "ab"), ("\ud83d", ""), ("\ufffe", ""), ("é\t😀", "é\t😀")])
def test_xml_loses_only_what_it_cannot_hold(text: str, kept: str) -> None:
    assert escaping.xml(text) == kept
