"""Chat data: rows of messages, of a prompt and its completion, or of a prompt and a preferred answer.

The formats are those that TRL's users have: `messages` (also `conversations` with from and value), `prompt` and
`completion`, `prompt` with `chosen` and `rejected`, each a string or messages. What a chat looks like to a model is its
chat template's business, not this module's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

ChatFormat = Literal["messages", "prompt_completion", "preference"]
Role = Literal["system", "user", "assistant", "tool"]

LISTS: Final = ("messages", "conversations", "conversation")
"""Columns that hold the messages of a chat."""

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Names of roles that people use, and those that templates know."""


class Turn(NamedTuple):
    """One message."""

    role: Role
    content: str


Chat = tuple[Turn, ...]
"""The messages of a row in their order."""


class ChatError(ValueError):
    """A row that is no chat; says why, without the place."""


def format_of(names: Sequence[str]) -> ChatFormat | None:
    """Which format columns of these names are; None: no chat data."""
    if any(name in names for name in LISTS):
        return "messages"
    if "chosen" in names:
        return "preference"
    return "prompt_completion" if "prompt" in names and "completion" in names else None


def chat_of(record: Mapping[str, Any], format: ChatFormat) -> Chat:
    """The chat of a row; of a preference the chosen answer.

    Raises:
        ChatError: it is none, or nobody answers in it.
    """
    if format == "messages":
        name = next((name for name in LISTS if name in record), LISTS[0])
        turns = _turns(record.get(name), name)
    else:
        answer = "completion" if format == "prompt_completion" else "chosen"
        turns = [*_turns(record.get("prompt") or [], "prompt", "user")]
        found = _turns(record.get(answer), answer, "assistant")
        turns = found if found[: len(turns)] == turns else [*turns, *found]
        if format == "preference" and record.get("chosen") == record.get("rejected"):
            raise ChatError("chosen and rejected are the same")
    return _checked(turns)


def as_text(chat: Chat) -> str:
    """A chat for people, and for telling whether two are the same."""
    return "\n".join(f"{turn.role}: {turn.content}" for turn in chat)


def _turns(value: Any, name: str, of_string: Role | None = None) -> list[Turn]:
    """Messages of a column; a string is one message of a role."""
    if isinstance(value, str) and of_string is not None:
        return [Turn(of_string, value)]
    if not isinstance(value, list):
        kinds = "a list of messages" if of_string is None else "a string or a list of messages"
        raise ChatError(f"{name} must be {kinds}")
    return [_turn(message, name) for message in value]


def _turn(message: Any, name: str) -> Turn:
    if not isinstance(message, Mapping):
        raise ChatError(f"{name} has a message that is no object with role and content")
    role, content = (message.get(one, message.get(other)) for one, other in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or role.casefold() not in _ROLES:
        raise ChatError(f"{name} has a message whose role is none of {', '.join(_ROLES)}")
    if isinstance(content, list):  # parts, as multimodal data have them
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(parts) != len(content) or not all(isinstance(part, str) for part in parts):
            raise ChatError(f"{name} has a message with parts that are no text")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise ChatError(f"{name} has a message without text")
    return Turn(_ROLES[role.casefold()], content)


def _checked(turns: Sequence[Turn]) -> Chat:
    if not any(turn.role == "assistant" and turn.content.strip() for turn in turns):
        raise ChatError("there is no answer of the assistant")
    if any(turn.role == "system" for turn in turns[1:]):
        raise ChatError("a system message stands after the first one")
    said = [turn.role for turn in turns if turn.role in ("user", "assistant")]
    if said[0] != "user" or any(one == other == "user" for one, other in pairwise(said)):
        raise ChatError("the roles are out of order: a chat begins with the user, who speaks once before each answer")
    return tuple(turns)
