"""Rows as tokens that a language model is to give: answers, whole texts, pairs of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backends.tables.chats import Chat, Turn
from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from tests.builders.chats import chat_rows, language_model
from workers.models.tokenizers import load_tokenizer
from workers.stages.finetune.sequences import Dropped, Encoding, TokenSequence, padded

ASKED, SAID, MORE = Turn("user", "the film"), Turn("assistant", "very good"), Turn("user", "plot")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    found: Any = load_tokenizer(base, "/base/uri")
    found.eos_token = "[SEP]"
    return found


def words(tokenizer: Any, one: TokenSequence, asked: bool = True) -> list[str]:
    ids = [token for token, is_so in zip(one.ids, one.asked, strict=True) if is_so or not asked]
    return list(tokenizer.convert_ids_to_tokens(ids))


def sequence(base: Path, tokenizer: Any, chat: Chat, **settings: Any) -> TokenSequence:
    (found,), _ = Encoding(tokenizer, settings.pop("length", 64), **settings).sequences(chat_rows(base, [chat]))
    return found


def test_of_messages_every_answer_is_asked_with_its_end(base: Path, tokenizer: Any) -> None:
    found = sequence(base, tokenizer, Chat((ASKED, SAID, MORE, Turn("assistant", "dull"))))
    assert words(tokenizer, found) == ["very", "good", "[SEP]", "dull", "[SEP]"]


def test_of_a_prompt_and_its_completion_the_completion_is(base: Path, tokenizer: Any) -> None:
    found = sequence(base, tokenizer, Chat((ASKED, SAID, MORE, Turn("assistant", "dull")), 3))
    assert words(tokenizer, found) == ["dull", "[SEP]"]


def test_all_tokens_are_asked_where_that_is_wanted_but_the_first(base: Path, tokenizer: Any) -> None:
    for completion in (0, 1):
        found = sequence(base, tokenizer, Chat((ASKED, SAID), completion), answers_alone=False)
        assert words(tokenizer, found) == words(tokenizer, found, asked=False)[1:]


def test_strings_end_with_the_end_token_once(tokenizer: Any, base: Path) -> None:
    plain = Chat((Turn("user", "the film was"), Turn("assistant", " good")), 1, plain=True)
    assert words(tokenizer, sequence(base, tokenizer, plain)) == ["good", "[SEP]"]
    (text,), _ = Encoding(tokenizer, 64).sequences([Row("the film was good", None)])
    assert words(tokenizer, text) == ["the", "film", "was", "good", "[SEP]"]


def test_rows_without_an_answer_within_the_length_are_counted(base: Path, tokenizer: Any) -> None:
    rows = chat_rows(base, [Chat((Turn("user", "the film was good " * 4), SAID), 1), Chat((ASKED, SAID), 1)])
    found, dropped = Encoding(tokenizer, 8).sequences(rows)
    assert [words(tokenizer, one) for one in found] == [["very"]]  # the rest is cut
    assert dropped == Dropped(truncated=1, rows=2, cut=1)
    lost, cut = dropped.warnings(6)
    assert {lost.code, cut.code} == {"truncated_answers"}
    assert "1 of 2 rows for the fine-tune have no token of the answer" in lost.message
    assert "1 of 2 rows for the fine-tune are longer than 6 tokens" in cut.message
    dropped.require_some(len(found), 6)
    with pytest.raises(InputError, match="within its first 6 tokens") as raised:
        Dropped(truncated=2, rows=2).require_some(0, 6)
    assert raised.value.errors[0].pointer == "/finetune/max_length"


def test_a_preference_is_two_answers_to_one_prompt(base: Path, tokenizer: Any) -> None:
    chat = Chat((ASKED, SAID), 1, ((Turn("assistant", "very dull"),),))
    (pair,), dropped = Encoding(tokenizer, 64).preferences(chat_rows(base, [chat]))
    assert words(tokenizer, pair.chosen) == ["very", "good", "[SEP]"]
    assert words(tokenizer, pair.rejected) == ["very", "dull", "[SEP]"]
    assert dropped == Dropped(rows=1)


def test_rows_without_a_rejected_answer_are_no_preferences(base: Path, tokenizer: Any) -> None:
    found, dropped = Encoding(tokenizer, 64).preferences(chat_rows(base, [Chat((ASKED, SAID), 1)]))
    assert (found, dropped.other) == ([], 1)
    with pytest.raises(InputError, match="dpo needs preferences"):
        dropped.require_some(0, 64)


def test_sequences_are_filled_up_on_the_right() -> None:
    batch = padded([TokenSequence([5, 6, 7], [False, True, True]), TokenSequence([8], [False])])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert torch.equal(batch.asked, torch.tensor([[False, True, True], [False, False, False]]))
