"""Other endings of chats: which texts have them whole, and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.tables.chats import Chat, Turn
from tests.builders.chats import chat_rows, language_model
from tests.builders.stages import resolved
from workers.stages.common.endings import Endings, answer_characters
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.layered_pair import layered_pair
from workers.stages.common.moment_accumulator import TokenizationSpec

ASKED = Turn("user", "the film")


def answer(text: str) -> Turn:
    return Turn("assistant", text)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model"))


def spec(base: Path, length: int) -> TokenizationSpec:
    checkpoint = Checkpoint(base, "file:///base", "0" * 64)
    return layered_pair(checkpoint, checkpoint, resolved(base).tokenizer, length).tokenization


def test_each_ending_belongs_to_its_text(base: Path) -> None:
    rows = chat_rows(
        base,
        [
            Chat((ASKED, answer("good")), 1),
            Chat((ASKED, answer("good")), 1, ((answer("bad"),), (answer("dull"),))),
            Chat((ASKED, answer("good")), 1, ((answer("bad " * 30),),)),
        ],
    )
    found = Endings.of(spec(base, 24), rows)
    assert found is not None
    assert found.owners == [1, 1]
    assert [row.text for row in found.rows] == list(rows[1].others)
    assert found.skipped == 1


def test_without_other_endings_there_is_nothing(base: Path) -> None:
    assert Endings.of(spec(base, 24), chat_rows(base, [Chat((ASKED, answer("good")), 1)])) is None


def test_characters_are_those_of_the_answer(base: Path) -> None:
    (row,) = chat_rows(base, [Chat((Turn("user", "q"), answer(" good")), 1, plain=True)])
    assert answer_characters(row.text) == 4
    assert answer_characters("a text") == 6
