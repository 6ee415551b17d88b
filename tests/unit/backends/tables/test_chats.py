"""Rows of chat data as messages, whatever their format is called."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from backends.tables.chats import Chat, ChatError, Turn, as_text, chat_of, format_of, strings

ASKED, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CHAT = (Turn("user", "Hi"), Turn("assistant", "Hello"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["messages", "id"], "messages"),
        (["conversations"], "messages"),
        (["prompt", "completion"], "prompt_completion"),
        (["prompt", "chosen", "rejected"], "preference"),
        (["chosen", "rejected"], "preference"),
        (["question", "choices", "answer"], "multiple_choice"),
        (["id", "question", "choices", "answerKey"], "multiple_choice"),
        (["prompt"], None),
        (["text"], None),
    ],
)
def test_a_format_is_told_by_the_columns(names: list[str], expected: str | None) -> None:
    assert format_of(names) == expected


BACK = {"role": "assistant", "content": "Go away"}
OTHER = {"role": "user", "content": "Bye"}


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"messages": [ASKED, SAID]}, "messages"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "messages"),
        ({"messages": [ASKED, {"role": "Assistant", "content": [{"type": "text", "text": "Hello"}]}]}, "messages"),
    ],
)
def test_messages_are_read_whatever_their_keys_are_called(record: dict[str, Any], format: Any) -> None:
    assert chat_of(record, format) == Chat(CHAT)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [ASKED], "completion": [SAID]},
        {"prompt": "Hi", "completion": [SAID]},
    ],
)
def test_a_completion_follows_its_prompt(record: dict[str, Any]) -> None:
    assert chat_of(record, "prompt_completion") == Chat(CHAT, 1)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [ASKED], "chosen": [SAID], "rejected": [BACK]},
        {"prompt": "Hi", "chosen": [ASKED, SAID], "rejected": [ASKED, BACK]},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, BACK]},
    ],
)
def test_a_preference_has_two_endings_of_one_prompt(record: dict[str, Any]) -> None:
    assert chat_of(record, "preference") == Chat(CHAT, 1, ((Turn("assistant", "Go away"),),))


def test_strings_are_no_chat_that_a_template_renders() -> None:
    assert chat_of({"prompt": "Hi", "completion": " Hello"}, "prompt_completion") == Chat(
        (Turn("user", "Hi"), Turn("assistant", " Hello")), 1, plain=True
    )


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Q: 2+2?", "chosen": " 4", "rejected": " 5"},
        {"prompt": "Q: 2+2?", "chosen": "Q: 2+2? 4", "rejected": "Q: 2+2? 5"},
        {"chosen": "Q: 2+2? 4", "rejected": "Q: 2+2? 5"},
    ],
)
def test_the_prompt_of_a_preference_may_stand_in_both_strings(record: dict[str, Any]) -> None:
    chat = chat_of(record, "preference")
    assert chat.turns == (Turn("user", "Q: 2+2?"), Turn("assistant", " 4"))
    assert chat.others == ((Turn("assistant", " 5"),),)
    assert as_text(chat) == "Q: 2+2? 4"


@pytest.mark.parametrize("answer", [1, "1", "B", " b2 "])
def test_a_question_has_its_right_choice_first(answer: int | str) -> None:
    chat = chat_of({"question": "Which?", "choices": ["a1", "b2", "c3"], "answer": answer}, "multiple_choice")
    assert as_text(chat) == "Question: Which?\nAnswer: b2"
    assert [ending[0].content for ending in chat.others] == [" a1", " c3"]


def test_choices_may_bring_their_labels() -> None:
    record = {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"}
    assert chat_of(record, "multiple_choice").turns[1].content == " a"


@pytest.mark.parametrize(
    ("labels", "answer", "right"),
    [
        ([1, 2, 3], 1, "x"),
        ([1, 2, 3], 3, "z"),
        (["1", "2", "3"], 1, "x"),
        (["A", "B", "C"], 1, "y"),
        (["A", "B", "C"], "C", "z"),
        (["A", "B"], "B", "y"),
    ],
    ids=["numbers", "last", "texts", "index", "letter", "labels of another count"],
)
def test_labels_count_more_than_numbers_from_zero(labels: list[Any], answer: int | str, right: str) -> None:
    record = {"question": "Which?", "choices": {"text": ["x", "y", "z"], "label": labels}, "answerKey": answer}
    assert chat_of(record, "multiple_choice").turns[1].content == f" {right}"


def test_numbers_as_choices_are_read_where_there_is_one_reading() -> None:
    choices = ["0", "1", "2", "3"]
    for answer in ("2", 2):
        chat = chat_of({"question": "Which?", "choices": choices, "answer": answer}, "multiple_choice")
        assert chat.turns[1].content == " 2"


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"prompt": "Hello", "completion": "Hello! How can I help?"}, ("Hello", "Hello! How can I help?")),
        ({"prompt": "Hi", "chosen": "Hi there", "rejected": "History"}, ("Hi", "Hi there", "History")),
        ({"prompt": "You say:", "chosen": "You say:yes", "rejected": "You say:no"}, ("You say:", "You say:yes")),
    ],
    ids=["completion", "preference", "no space between"],
)
def test_answers_that_begin_as_their_prompt_does_are_kept_whole(record: dict[str, Any], turns: tuple[str, ...]) -> None:
    chat = chat_of(record, "preference" if "chosen" in record else "prompt_completion")
    said = [turn.content for part in (chat.turns, *chat.others) for turn in part]
    assert tuple(said[: len(turns)]) == turns


def test_all_strings_of_a_chat_are_told() -> None:
    record = {"prompt": [ASKED], "chosen": [SAID], "rejected": [BACK], "tools": [{"name": "f"}]}
    assert {one for one in strings(chat_of(record, "preference")) if one} == {
        "Hi", SAID["content"], BACK["content"], '[{"name": "f"}]',
    }  # fmt: skip


def test_calls_of_tools_are_kept_for_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    chat = chat_of({"messages": [ASKED, call, {"role": "tool", "content": "3"}, SAID], "tools": "[{}]"}, "messages")
    assert chat.turns[1].as_message() == {**call, "content": ""}
    assert chat.tools == "[{}]"


@pytest.mark.parametrize(
    ("record", "format", "reason"),
    [
        ({"messages": "Hi"}, "messages", "must be a list of messages"),
        ({"messages": ["Hi"]}, "messages", "no object with role and content"),
        ({"messages": [ASKED]}, "messages", "no answer of the assistant"),
        ({"messages": []}, "messages", "no answer of the assistant"),
        ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "messages", "no answer of the assistant"),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "messages", "without text"),
        ({"messages": [SAID, ASKED]}, "messages", "out of order"),
        ({"messages": [ASKED, ASKED, SAID]}, "messages", "out of order"),
        ({"messages": [ASKED, SAID, {"role": "system", "content": "x"}]}, "messages", "a system message stands after"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages", "whose role is none of"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]}, "messages", "parts that are no text"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "preference", "the same"),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]}, "preference", "the same"),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED]}, "preference", "the beginning of the other"),
        ({"chosen": [ASKED, SAID], "rejected": [OTHER, BACK]}, "preference", "do not begin with the same prompt"),
        ({"prompt": [ASKED], "chosen": [SAID], "rejected": [ASKED]}, "preference", "no answer of the assistant after"),
        ({"chosen": "yes or no", "rejected": "yes"}, "preference", "the beginning of the other"),
        ({"messages": [ASKED, SAID], "tools": "[" * 100_000}, "messages", "not JSON"),
        ({"messages": [ASKED, SAID], "tools": [b"x"]}, "messages", "tools holds a value that JSON cannot have"),
        (
            {"messages": [ASKED, {**SAID, "tool_calls": [{"at": date(2026, 1, 1)}]}]},
            "messages",
            "that JSON cannot have",
        ),
        ({"messages": [ASKED, {**SAID, "thinking": "\ud800"}]}, "messages", "half a character"),
        ({"question": "Which?", "choices": ["a ", "a"], "answer": 0}, "multiple_choice", "must differ"),
        ({"question": "Which?", "choices": ["1", "2", "3", "4"], "answer": "3"}, "multiple_choice", "can be read as"),
        ({"question": "Which?", "choices": ["B", "A"], "answer": "A"}, "multiple_choice", "can be read as"),
        ({"prompt": "Hi", "completion": 3}, "prompt_completion", "must be a string or a list of messages"),
        ({"prompt": "Hi", "completion": " "}, "prompt_completion", "no answer after the prompt"),
        ({"messages": [ASKED, SAID], "tools": "{"}, "messages", "not JSON"),
        ({"question": "Which?", "choices": ["a"], "answer": 0}, "multiple_choice", "at least two"),
        ({"question": "Which?", "choices": ["a", "a"], "answer": 0}, "multiple_choice", "must differ"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": 2}, "multiple_choice", "the number of a choice"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": True}, "multiple_choice", "the number of a choice"),
    ],
)
def test_a_row_that_is_no_chat_says_why(record: dict[str, Any], format: Any, reason: str) -> None:
    with pytest.raises(ChatError, match=reason):
        chat_of(record, format)


def test_tools_and_systems_are_roles_too() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, ASKED, {"role": "tool", "content": "3"}, SAID]
    assert [turn.role for turn in chat_of({"messages": messages}, "messages").turns] == [
        "system",
        "user",
        "tool",
        "assistant",
    ]


def test_a_chat_as_text_has_its_roles() -> None:
    assert as_text(Chat(CHAT)) == "user: Hi\nassistant: Hello"
