"""Prompts: beginnings of texts, general ones, and questions in a chat template."""

from __future__ import annotations

from typing import Any

import pytest

from backends.tables.chats import Chat, Turn
from backends.tables.reading import Row
from tests.builders.families import made
from tests.builders.stages import resolved
from tests.stages.test_families import saved
from tests.stages.test_layered import with_head
from workers.stages.learned.prompts import BEGINNINGS, QUESTIONS, TEXT_TOKENS, prompts_of

TEXTS = [Row("the film was good and the plot was great and bright and the actor was good", None)] * 9
CHAT = (Turn("user", "good film"), Turn("assistant", "bad"), Turn("user", "the plot"), Turn("assistant", "great"))
TEMPLATE = (
    "{% for m in messages %}[CLS] {{ m.content }} [SEP]{% endfor %}{% if add_generation_prompt %} good{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    return resolved(saved(with_head(made("llama", 0)), folder / "base")).tokenizer


def test_without_a_template_a_half_are_beginnings_of_texts(tokenizer: Any) -> None:
    found = prompts_of(tokenizer, None, [*TEXTS, TEXTS[0]._replace(pair="a second text of a pair")], 20)
    assert [one.kind for one in found[:4]] == ["text", "general", "text", "general"]
    assert len(found) == 20
    for one in found:
        assert one.ids
        assert one.ids[-1] != tokenizer.sep_token_id  # a text that goes on has no end
        if one.kind == "text":
            assert len([token for token in one.ids if token not in tokenizer.all_special_ids]) == TEXT_TOKENS
            assert one.text == "the film was good and the plot was"
        else:
            assert one.text in BEGINNINGS


def test_with_a_template_a_quarter_are_questions_in_it(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    found = prompts_of(tokenizer, tokenizer, TEXTS, 8)
    assert [one.kind for one in found] == ["text", "general", "text", "chat"] * 2
    assert found[3].text == QUESTIONS[0]
    assert tokenizer.decode(found[3].ids).endswith("good")


def test_of_chats_all_is_given_that_comes_before_the_last_answer(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    rows = [
        Row("rendered", None, None, None, Chat(CHAT)),
        Row("rendered", None, None, None, Chat((*CHAT[:1], Turn("user", "x" * 999)))),
    ]
    found = [one for one in prompts_of(tokenizer, tokenizer, rows, 4) if one.kind == "text"]
    assert {one.text for one in found} == {"the plot"}  # nothing of a chat without an answer
    said = tokenizer.decode(found[0].ids)
    assert [word for word in ("good", "film", "bad", "the", "plot") if word not in said] == []
    assert "great" not in said


def test_a_template_that_fails_is_done_without(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no') }}")
    assert {one.kind for one in prompts_of(tokenizer, tokenizer, TEXTS, 8)} == {"text", "general"}


def test_more_prompts_than_there_are_come_again(tokenizer: Any) -> None:
    found = prompts_of(tokenizer, None, TEXTS, 200)
    assert len(found) == 200
    assert len({one.text for one in found if one.kind == "general"}) == len(BEGINNINGS)
    assert prompts_of(tokenizer, None, [], 4)[0].kind == "general"


def test_beginnings_and_questions_are_each_told_once() -> None:
    for told in (BEGINNINGS, QUESTIONS):
        assert len(set(told)) == len(told) == 32
