"""The report as Markdown, as it stands in a pull request."""

from __future__ import annotations

import re
from typing import Any

import pytest
from markdown_it import MarkdownIt

from layerdrift.contract.report import Report
from layerdrift.render import markdown, sentences
from tests.builders.reports import preliminary, report, turned_over


def test_markdown_is_a_table_that_no_name_can_break() -> None:
    lines = markdown.render(report(name="a | b\n# c `d` <e>")).splitlines()
    assert lines[0] == "# a \\| b \\# c \\`d\\` \\<e\\>"
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {15}
    assert len(table) == 2 + 4


def table(given: Report) -> list[list[str]]:
    """The cells of the table of layers, its headings first."""
    lines = [line for line in markdown.layer_table(given).splitlines() if "---" not in line]
    return [line.strip("| ").split(" | ") for line in lines]


def without(*parts: str) -> Report:
    """A report without grafts or autoencoders."""
    causal = {} if "graft" in parts else report().causal.model_dump()
    made = report(with_sae="sae" not in parts, causal=causal)
    for layer in made.layers:
        layer.graft = None if "graft" in parts else layer.graft
    return made


def test_intervals_are_written_out() -> None:
    assert "| 0.9900 to 1.0100 |" in markdown.render(report())


def test_a_number_without_meaning_is_a_dash_and_never_nan() -> None:
    text = markdown.render(report(constant_views=("cls", "token")))
    assert "| 0 embeddings | general | 0.0000 | 0.00100 | — | no | — | — | — |" in text
    assert not re.search(r"\bnan\b", text.lower())


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (report(), 14),
        (without("graft"), 13),
        (without("sae"), 11),
        (without("graft", "sae"), 10),
        (turned_over(), 17),
    ],
    ids=["whole", "no grafts", "no autoencoders", "neither", "turnover"],
)
def test_what_was_not_computed_has_no_column_and_every_row_has_the_others(given: Report, columns: int) -> None:
    assert [len(row) for row in table(given)] == [columns] * 5


def test_turnover_is_told_as_what_lies_beyond_its_floor() -> None:
    heading, first, *_ = table(turned_over())
    assert dict(zip(heading[-3:], first[-3:], strict=True)) == {
        "latents beyond the floor: new": "+3 ± 2",
        "lost": "+4 ± 2",
        "shifted": "+4 ± 3",
    }


def test_the_unit_of_the_grafts_stands_above_them() -> None:
    given = report(causal={"graft": {"measure": "perplexity", "ungrafted": 8.0, "examples": 50}})
    assert "graft (perplexity)" in table(given)[0]


def test_a_report_without_a_name_has_a_title() -> None:
    assert markdown.render(report(name="")).startswith("# Layer drift report\n")


def test_a_preliminary_report_says_so_below_its_title() -> None:
    title, note, *_ = markdown.render(preliminary(("sae", None))).split("\n\n")
    assert (title, note[:23]) == ("# demo", "**Preliminary report: t")


def test_warnings_are_quoted_and_those_of_the_first_screen_stand_before_the_advice() -> None:
    warnings = [{"code": "answers_worse", "message": "it answers worse"}, {"code": "blank_texts", "message": "3 blank"}]
    text = markdown.render(report(warnings=warnings))
    assert text.index("**It answers worse\\.**") < text.index("Freeze the embeddings")
    assert "> **answers_worse**: it answers worse" in text
    assert "> **blank_texts**: 3 blank" in text


def test_paragraphs_that_have_nothing_to_say_leave_no_hole() -> None:
    assert "\n\n\n" not in markdown.render(report(outputs=None, finetune=None, warnings=[]))


def test_where_the_numbers_come_from_stands_at_the_end() -> None:
    last = markdown.render(report()).rstrip().split("\n\n")[-1]
    assert last == (
        "`file:///base` (sha256 `ffffffffffff`) → `file:///tuned` (sha256 `ffffffffffff`); 500 tokens of 50 texts; "
        f"layerdrift 0; analysis `an_{'a' * 26}`."
    )


@pytest.mark.parametrize("changes", [{}, {"warnings": [{"code": "adapter_base", "message": "a | b `c` <d>"}]}])
def test_it_is_one_table_among_paragraphs_for_github(changes: dict[str, Any]) -> None:
    page = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(markdown.render(report(**changes)))
    assert page.count("<table>") == 1
    assert page.count("<tr>") == 1 + 4
    assert "<d>" not in page


def test_the_finding_stands_before_the_table_and_its_limits_after_it() -> None:
    given = report()
    parts = [
        sentences.headline(given),
        str(sentences.outcome(given)),
        sentences.advice(given),
        markdown.layer_table(given),
        " ".join(sentences.limits(given)),
    ]
    places = [markdown.render(given).index(part) for part in parts]
    assert places == sorted(places)
