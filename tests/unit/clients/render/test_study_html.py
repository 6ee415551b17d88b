"""The page of a study: all of it inside, and nothing of a user becomes markup."""

from __future__ import annotations

import re

from layerdrift.render.study_html import render
from tests.builders.studies import made_study, member_report, study_request


def test_the_page_is_whole_and_fetches_nothing() -> None:
    page = render(made_study())
    assert "{{" not in page.partition("<script")[0]
    assert not re.search(r'(src|href)="https?:', page.partition('<script id="data"')[0])
    for figure in ("drift", "heat", "zones", "generality", "spread", "front", "lora", "shared", "tree"):
        assert f'id="{figure}"' in page


def test_equal_reports_give_equal_pages() -> None:
    assert render(made_study()) == render(made_study())


def test_what_users_wrote_stays_text() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    members = [
        {"name": name, "task": evil, "tuned": {"uri": f"s3://m/{place}"}, "dataset": {"uri": "s3://d/a.csv"}}
        for place, name in enumerate((evil, "b"))
    ]
    asked = study_request(name=evil, members=members)
    page = render(made_study(asked, {evil: member_report([0, 0.1]), "b": member_report([0, 0.2])}))
    assert "<img src=x" not in page
    assert page.count("</script>") == 3


def test_a_hole_is_shown_with_its_reason() -> None:
    page = render(made_study(reports={"spam-0": member_report([0, 0.1])}))
    assert "no report (failed): the disk was full" in page
