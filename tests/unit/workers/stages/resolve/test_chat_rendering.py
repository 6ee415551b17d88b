"""Chats rendered by a checkpoint's chat template."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.tables.chats import Chat, Turn
from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from tests.builders.models import tiny_tokenizer
from workers.stages.resolve.chat_rendering import rendered

ENDLESS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TEMPLATE = ENDLESS.replace("{% endfor", "[SEP]{% endfor")
CHAT = Chat((Turn("user", "good film?"), Turn("assistant", "good")), place="line 2 of x.jsonl")
ROWS = [Row("user: good film?", "yes", None, "g", CHAT), Row("a plain text", None)]


def checkpoint(folder: Path, template: str | None) -> Path:
    folder.mkdir()
    tokenizer = tiny_tokenizer(folder)
    tokenizer.chat_template, tokenizer.eos_token = template, "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


def test_the_tuned_models_template_comes_first_and_texts_stay(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", TEMPLATE.replace("<", "["))
    tuned = checkpoint(tmp_path / "tuned", TEMPLATE)
    rows, warnings = rendered(ROWS, base, tuned)
    assert rows[0] == ROWS[0]._replace(text="<user>good film?[SEP]<assistant>good[SEP]")
    assert rows[1] == ROWS[1]
    assert [one.code for one in warnings] == ["chats_rendered"]
    assert "1 rows are chats, rendered by the chat template of the tuned model" in warnings[0].message


@pytest.mark.parametrize("tuned", ["without", "absent"])
def test_else_the_bases_does(tuned: str, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", TEMPLATE)
    other = checkpoint(tmp_path / "tuned", None) if tuned == "without" else None
    rows, warnings = rendered(ROWS, base, other)
    assert rows[0].text == "<user>good film?[SEP]<assistant>good[SEP]"
    assert "of the base model" in warnings[0].message


def test_texts_need_no_template(tmp_path: Path) -> None:
    assert rendered(ROWS[1:], tmp_path / "nowhere", None) == (ROWS[1:], [])


def test_without_any_template_chats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither checkpoint has a chat template") as raised:
        rendered(ROWS, checkpoint(tmp_path / "base", None), None)
    assert raised.value.errors[0].pointer == "/dataset/uri"


def test_the_template_of_the_request_comes_before_all(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", TEMPLATE)
    rows, warnings = rendered(ROWS, base, None, TEMPLATE.replace("<", "("))
    assert rows[0].text == "(user>good film?[SEP](assistant>good[SEP]"
    assert "of the request" in warnings[0].message


def test_strings_need_no_template(tmp_path: Path) -> None:
    row = Row("", None, None, None, Chat((Turn("user", "a"), Turn("assistant", " b")), 1, plain=True))
    found, warnings = rendered([row], checkpoint(tmp_path / "base", None), None)
    assert (found[0].text, warnings) == ("a b", [])


def test_chats_that_a_template_refuses_are_skipped_and_counted(tmp_path: Path) -> None:
    base = checkpoint(
        tmp_path / "base", "{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    )
    refused = Row(
        "user: bad film?", None, None, None, Chat((Turn("user", "bad film?"), CHAT.turns[1]), place="line 7 of x.jsonl")
    )
    rows, warnings = rendered([refused, *ROWS], base, None)
    assert [row.text for row in rows] == ["<user>good film?[SEP]<assistant>good[SEP]", "a plain text"]
    assert warnings[1].code == "unusable_chats"
    assert "cannot render 1 of 2 chats, the first at line 7 of x.jsonl: no (1)" in warnings[1].message


def test_a_template_that_refuses_all_chats_ends_it(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "{{ raise_exception('no system messages') }}")
    with pytest.raises(InputError, match=r"1 of 1 chats, the first at line 2 of x\.jsonl: no sys"):
        rendered(ROWS, base, None)


def test_a_template_that_ends_no_answer_teaches_no_model_to_stop(tmp_path: Path) -> None:
    _, warnings = rendered(ROWS, checkpoint(tmp_path / "base", ENDLESS), None)
    assert [one.code for one in warnings] == ["chats_rendered", "never_stops"]
    assert "the chat template of the base model ends no answer" in warnings[1].message
