"""The paper's page, from a made-up study."""

from __future__ import annotations

from pathlib import Path

from deploy.paper.claims import judged
from deploy.paper.page import figures, text, write
from tests.builders.studies import made_study, member_report, similarity, study_request


def test_every_task_has_a_row_and_every_claim_a_verdict() -> None:
    report = made_study()
    page = text(report, "2026; a machine.")
    for one in judged(report):
        assert f"| {one.task} | all weights | 2 |" in page
    assert "**Early layers keep general representations**: holds for 1 of 2 pairs of task and method." in page
    assert "2026; a machine." in page
    assert "0.80 within a task and 0.10 across tasks at layer 1" in page


def test_members_without_a_report_are_named() -> None:
    assert "3 members have no report: reviews-0, reviews-1, spam-1." in text(
        made_study(reports={"spam-0": member_report([0, 0.1, 0.2, 0.3])}), ""
    )


def test_the_figures_that_the_page_shows_are_written(tmp_path: Path) -> None:
    report = made_study()
    write(report, tmp_path / "paper.md", tmp_path / "images", "")
    page = (tmp_path / "paper.md").read_text()
    assert {path.name for path in (tmp_path / "images").iterdir()} == {f"paper-{name}.png" for name in figures(report)}
    for path in (tmp_path / "images").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    for name in ("drift", "general", "spread", "shared", "tree"):
        assert f"(images/paper-{name}.png)" in page


def test_without_similarity_there_is_no_figure_of_it() -> None:
    report = made_study(study_request(), {"spam-0": member_report([0, 0.1, 0.2, 0.3])})
    assert "shared" not in figures(report)
    alike = similarity(["reviews-0", "spam-0"]).model_copy(update={"tree": []})
    shown = report.model_copy(update={"similarity": alike})
    assert "shared" in figures(shown)
