"""Rows of chat data as messages, whatever their format is called."""

from __future__ import annotations

from typing import Any

import pytest

from backends.tables.chats import ChatError, Turn, as_text, chat_of, format_of

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
        (["prompt"], None),
        (["text"], None),
    ],
)
def test_a_format_is_told_by_the_columns(names: list[str], expected: str | None) -> None:
    assert format_of(names) == expected


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"messages": [ASKED, SAID]}, "messages"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "messages"),
        ({"messages": [ASKED, {"role": "Assistant", "content": [{"type": "text", "text": "Hello"}]}]}, "messages"),
        ({"prompt": "Hi", "completion": "Hello"}, "prompt_completion"),
        ({"prompt": [ASKED], "completion": [SAID]}, "prompt_completion"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}, "preference"),
        ({"prompt": [ASKED], "chosen": [ASKED, SAID], "rejected": [ASKED]}, "preference"),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED]}, "preference"),
    ],
)
def test_each_format_gives_the_same_messages(record: dict[str, Any], format: Any) -> None:
    assert chat_of(record, format) == CHAT


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
        ({"prompt": "Hi", "completion": 3}, "prompt_completion", "must be a string or a list of messages"),
    ],
)
def test_a_row_that_is_no_chat_says_why(record: dict[str, Any], format: Any, reason: str) -> None:
    with pytest.raises(ChatError, match=reason):
        chat_of(record, format)


def test_tools_and_systems_are_roles_too() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, ASKED, {"role": "tool", "content": "3"}, SAID]
    assert [turn.role for turn in chat_of({"messages": messages}, "messages")] == [
        "system",
        "user",
        "tool",
        "assistant",
    ]


def test_a_chat_as_text_has_its_roles() -> None:
    assert as_text(CHAT) == "user: Hi\nassistant: Hello"
