"""A study in Markdown."""

from __future__ import annotations

from layerdrift.render.study_markdown import render
from tests.builders.studies import made_study, member_report, study_request


def test_members_and_layers_have_a_row_each() -> None:
    text = render(made_study())
    for name in ("reviews\\-0", "spam\\-1"):
        assert f"| {name} |" in text
    assert "| 3 block 3 |" in text


def test_every_row_has_as_many_cells_as_its_head() -> None:
    for table in render(made_study()).split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1


def test_a_hole_says_why() -> None:
    assert "no report: the disk was full" in render(made_study(reports={"spam-0": member_report([0, 0.1])}))


def test_names_become_no_markup() -> None:
    members = [
        {"name": name, "tuned": {"uri": f"s3://m/{name[0]}"}, "dataset": {"uri": "s3://d/a.csv"}}
        for name in ("a|b <b>", "c")
    ]
    asked = study_request(members=members)
    text = render(made_study(asked, {"a|b <b>": member_report([0, 0.1]), "c": member_report([0, 0.2])}))
    assert "a\\|b \\<b\\>" in text
