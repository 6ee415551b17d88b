"""The section of a model card: it replaces itself, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerdrift.contract.errors import InputError
from layerdrift.integrations import model_card
from tests.builders.policies import check, verdict
from tests.builders.reports import preliminary, report

BEGIN, END = "<!-- layerdrift:begin -->", "<!-- layerdrift:end -->"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card that somebody wrote."""
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: apache-2.0\ntags:\n- é\n---\n# A model\n\nIts own words.\n", encoding="utf-8")
    return path


def test_the_section_follows_what_was_written_and_leaves_it(card: Path) -> None:
    before = card.read_text()
    model_card.put(card, report())
    assert card.read_text() == f"{before}\n{model_card.section(report(), None)}"


def test_a_later_section_takes_the_place_of_the_earlier_one(card: Path) -> None:
    model_card.put(card, report())
    card.write_text(card.read_text() + "\n## License\n")
    other = report(analysis_id="an_other")
    model_card.put(card, other)
    text = card.read_text()
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert "an_other" in text
    assert report().analysis_id not in text
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert text.endswith(f"{END}\n\n## License\n")


def test_the_same_section_again_changes_nothing(card: Path) -> None:
    model_card.put(card, report())
    once = card.read_bytes()
    model_card.put(card, report())
    assert card.read_bytes() == once


def test_a_name_with_backslashes_is_put_as_it_is(card: Path) -> None:
    model_card.put(card, report())
    model_card.put(card, report(compared=r"C:\1\g<0> → b"))
    assert r"`C:\1\g<0> → b`" in card.read_text()


def test_a_card_that_is_not_there_is_made_with_metadata_that_the_hub_takes(tmp_path: Path) -> None:
    model_card.put(tmp_path / "new.md", report())
    assert (tmp_path / "new.md").read_text().startswith(f"---\n{{}}\n---\n\n{BEGIN}\n## Layer drift\n")


def test_the_card_that_is_pushed_has_the_metadata_and_the_section(card: Path) -> None:
    made = model_card.put(card, report())
    assert made.data.get("license") == "apache-2.0"
    assert END in made.text


def test_the_verdict_stands_in_the_section_where_a_policy_was_evaluated() -> None:
    assert "Review: Policy failed." in model_card.section(report(), verdict("fail", check("fail")))
    assert "Review:" not in model_card.section(report(), None)


def test_numbers_that_are_not_there_leave_no_hole() -> None:
    assert "\n\n\n" not in model_card.section(report(outputs=None, finetune=None), None)


def test_a_preliminary_report_is_not_published_and_the_card_stays(card: Path) -> None:
    before = card.read_bytes()
    with pytest.raises(InputError, match="preliminary"):
        model_card.put(card, preliminary(("sae", None)))
    assert card.read_bytes() == before
