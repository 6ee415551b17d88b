"""Which texts are read, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerdrift.contract.errors import InputError
from tests.builders.models import BLOCKS, HIDDEN, tiny_tokenizer
from workers.models.states import StateReader
from workers.models.texts import Text
from workers.stages.common.moment_accumulator import GroupPlan, TokenizationSpec
from workers.stages.extract.extracted import TokenCounts
from workers.stages.extract.read_texts import about_intervals, cut_texts, shown_text, unread_texts, within


@pytest.mark.parametrize(
    ("counts", "excluded", "truncated"),
    [
        (TokenCounts(first=2, outliers=3, counted=15, unread=20), 0.25, 0.5),
        (TokenCounts(first=0, outliers=0, counted=10, unread=0), 0.0, 0.0),
        (TokenCounts(first=0, outliers=0, counted=0, unread=5), 0.0, 1.0),
        (TokenCounts(first=0, outliers=0, counted=0, unread=0), 0.0, 0.0),
    ],
)
def test_shares_of_tokens_are_of_those_read_and_of_all(counts: TokenCounts, excluded: float, truncated: float) -> None:
    assert (counts.excluded_share, counts.truncated_share) == (excluded, truncated)


@pytest.mark.parametrize(
    ("unread", "length", "wanted", "codes"),
    [
        (0, 64, None, []),
        (0, 64, 64, []),
        (30, 64, None, ["texts_cut"]),
        (0, 64, 65, ["length_reduced"]),
        (30, 64, 512, ["texts_cut", "length_reduced"]),
    ],
)
def test_what_was_not_read_of_long_texts_is_said(
    unread: int, length: int, wanted: int | None, codes: list[str]
) -> None:
    found = cut_texts(TokenCounts(first=0, outliers=0, counted=70, unread=unread), length, wanted)
    assert [warning.code for warning in found] == codes
    if unread:
        assert found[0].message.startswith("30.0% of the tokens were not read: texts are truncated at 64 tokens")


def test_texts_that_were_not_reached_are_counted() -> None:
    assert unread_texts(0, 100) == []
    (warning,) = unread_texts(7, 100)
    assert warning.message == "7 texts were not compared: analysis.max_tokens (100) was reached first"


@pytest.mark.parametrize(
    ("plan", "codes", "words"),
    [
        (GroupPlan(), [], ""),
        (GroupPlan(merged=2), [], ""),
        (None, ["no_intervals"], "not even a sample"),
        (
            GroupPlan(every={"token": 4, "cls": 1, "mean": 2}),
            ["wide_intervals"],
            "(one row in 4 of the token view, one row in 2 of the mean view)",
        ),
    ],
)
def test_intervals_that_lack_room_are_warned_of(plan: GroupPlan | None, codes: list[str], words: str) -> None:
    found = about_intervals(plan)
    assert [warning.code for warning in found] == codes
    assert all(words in warning.message for warning in found)


@pytest.mark.parametrize(("text", "shown"), [("a film", "a film"), (("a film", "a plot"), "a film | a plot")])
def test_a_pair_is_shown_with_a_bar_between(text: Text, shown: str) -> None:
    assert shown_text(text) == shown


@pytest.fixture
def tokenization(tmp_path: Path) -> TokenizationSpec:
    return TokenizationSpec(tiny_tokenizer(tmp_path), 64, False, StateReader(BLOCKS + 1, HIDDEN))


def test_texts_are_read_up_to_the_one_with_which_the_limit_is_reached(tokenization: TokenizationSpec) -> None:
    texts: list[Text] = ["the good film was bad"] * 6
    assert within(tokenization, texts, 20) == (texts[:4], 20)
    assert within(tokenization, texts, 21) == (texts[:5], 25)
    assert within(tokenization, texts, 999) == (texts, 30)
    with pytest.raises(InputError, match="have 15 tokens besides special ones; at least 20"):
        within(tokenization, texts[:3], 999)
