"""What stage `extract` says of the texts: shares, warnings, refusals. The stage on models: tests/stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from tests.builders.models import BLOCKS, HIDDEN, tiny_bert, tiny_tokenizer
from tests.builders.stages import request
from tests.builders.texts import make_texts
from workers.analysis.moments import Frame
from workers.models.inliers import Inliers
from workers.models.states import StateReader, hidden_states
from workers.models.texts import Text, batches
from workers.stages.common.model_pair import Pair
from workers.stages.common.moment_accumulator import GroupPlan, TokenizationSpec
from workers.stages.extract.stage import (
    INLIER_TOKENS,
    TokenCounts,
    _about_intervals,
    _cut,
    _token_drift,
    _unread,
    _with_inliers,
    _within,
    shown_text,
)


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
    found = _cut(TokenCounts(first=0, outliers=0, counted=70, unread=unread), length, wanted)
    assert [warning.code for warning in found] == codes
    if unread:
        assert found[0].message.startswith("30.0% of the tokens were not read: texts are truncated at 64 tokens")


def test_texts_that_were_not_reached_are_counted() -> None:
    assert _unread(0, 100) == []
    (warning,) = _unread(7, 100)
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
    found = _about_intervals(plan)
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
    assert _within(tokenization, texts, 20) == (texts[:4], 20)
    assert _within(tokenization, texts, 21) == (texts[:5], 25)
    assert _within(tokenization, texts, 999) == (texts, 30)
    with pytest.raises(InputError, match="have 15 tokens besides special ones; at least 20"):
        _within(tokenization, texts[:3], 999)


def test_looking_for_outliers_loses_no_batch(tokenization: TokenizationSpec) -> None:
    texts = make_texts(400)  # more tokens than the rule needs
    pair = Pair(tiny_bert(0, blocks=1), tiny_bert(1, blocks=1), tokenization)
    found, stream = _with_inliers(pair, texts)
    read = list(stream)
    assert sorted(index for one in read for index in one.batch.indices) == list(range(400))
    assert sum(int(one.batch.real.sum()) for one in read) > INLIER_TOKENS
    assert found.tokenization.rule.base_limits.shape == (2,)
    assert pair.tokenization.inliers is None


def test_tokens_of_shown_texts_drift_by_the_definition(tokenization: TokenizationSpec) -> None:
    """|y - x|^2 over the mean squared distances of both models' rows from their means; special tokens are marked."""
    base, tuned = tiny_bert(0), tiny_bert(1)
    shown: list[Text] = ["the good film", "bad plot of no film at all"]
    (batch,) = batches(tokenization.tokenizer, [str(text) for text in shown], 2, 64)
    sides = [torch.stack(hidden_states(model, batch)) for model in (base, tuned)]
    frame = Frame.of(*(side[:, batch.real] for side in sides))
    pair = Pair(base, tuned, tokenization).with_inliers(Inliers.everywhere(False, BLOCKS + 1))
    found = _token_drift(request(), pair, shown, frame)
    assert found.source == "dataset"
    assert [text.text for text in found.texts] == shown
    assert found.texts[0].tokens == ["[CLS]", "the", "good", "film", "[SEP]"]
    assert found.texts[0].special == [True, False, False, False, True]
    row = batch.indices.index(0)
    centred = [side[:, row, 2].double() - mean for side, mean in zip(sides, (frame.base, frame.tuned), strict=True)]

    def spread(side: Tensor) -> Tensor:
        rows = side[:, batch.real].double()
        return (rows - rows.mean(1, keepdim=True)).square().sum(2).mean(1)

    expected = (centred[1] - centred[0]).square().sum(1) / (spread(sides[0]) + spread(sides[1]))
    assert [layer[2] for layer in found.texts[0].drift] == pytest.approx(expected.tolist(), abs=1e-4)
