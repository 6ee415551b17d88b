"""Which token of which text a row of activations is, and what stands around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertTokenizer

from tests.builders.models import tiny_tokenizer
from workers.models.texts import batches
from workers.stages.extract.contexts import WORDS_AROUND, Contexts

TEXTS = ["the good film", "bad", "the film was good and the plot was bad and the story was dull and the actor was sad"]
LABELS = ["yes", None, "no"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizer:
    return tiny_tokenizer(tmp_path)


def contexts_of(tokenizer: BertTokenizer, size: int = 2, units: list[int] | None = None) -> Contexts:
    found = Contexts(tokenizer, LABELS, units)
    for batch in batches(tokenizer, TEXTS, size, 64):
        found.add(batch)
    return found


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_row_is_a_word_of_its_text_whatever_the_batches(tokenizer: BertTokenizer, size: int) -> None:
    contexts = contexts_of(tokenizer, size)
    words = [contexts.around(row) for row in range(sum(len(text.split()) for text in TEXTS))]
    for text, whole in enumerate(TEXTS):
        assert [word.token for word in words if word.text == text] == whole.split()
    assert contexts.texts(len(words)).tolist() == [word.text for word in words]
    assert contexts.labels(len(words)) == [LABELS[word.text] for word in words] == [word.label for word in words]


def rows_of_long_text(contexts: Contexts) -> list[int]:
    return [row for row, text in enumerate(contexts.texts(23).tolist()) if text == 2]


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        (0, "", "film was good and the plot was bad …"),
        (WORDS_AROUND, "the film was good and the plot was", "and the story was dull and the actor …"),
        (WORDS_AROUND + 1, "… film was good and the plot was bad", "the story was dull and the actor was …"),
        (18, "… the story was dull and the actor was", ""),
    ],
    ids=["the first word", "just all before it", "a word before is left out", "the last word"],
)
def test_so_many_words_are_shown_on_either_side_and_an_ellipsis_where_more_are(
    tokenizer: BertTokenizer, place: int, before: str, after: str
) -> None:
    contexts = contexts_of(tokenizer)
    words = contexts.around(rows_of_long_text(contexts)[place])
    assert words.token == TEXTS[2].split()[place]
    assert (words.before, words.after) == (before, after)


def test_a_text_of_one_word_has_nothing_around_it(tokenizer: BertTokenizer) -> None:
    contexts = contexts_of(tokenizer)
    row = contexts.texts(23).tolist().index(1)
    example = contexts.example(row, 0.5)
    assert (example.before, example.token, example.after) == ("", "bad", "")
    assert (example.activation, example.label) == (0.5, None)


def test_rows_that_were_taken_away_at_the_front_shift_all_others(tokenizer: BertTokenizer) -> None:
    whole = contexts_of(tokenizer)
    whole.around(5)  # what was read before is of other rows
    rest = whole.without_first(4)
    for row in range(19):
        assert rest.around(row) == whole.around(row + 4)
    assert rest.texts(19).tolist() == whole.texts(23).tolist()[4:]


def test_units_are_those_of_the_rows_texts_or_the_texts_themselves(tokenizer: BertTokenizer) -> None:
    texts = contexts_of(tokenizer).texts(23).tolist()
    assert contexts_of(tokenizer).units(23).tolist() == texts
    assert contexts_of(tokenizer, units=[7, 7, 9]).units(23).tolist() == [[7, 7, 9][text] for text in texts]


def test_words_that_do_not_count_are_no_rows(tokenizer: BertTokenizer) -> None:
    contexts = Contexts(tokenizer, LABELS)
    (batch,) = batches(tokenizer, TEXTS[:1], 1, 64)
    real = batch.real.clone()
    real[0, 2] = False
    contexts.add(batch._replace(real=real))
    assert [contexts.around(row).token for row in range(2)] == ["the", "film"]
