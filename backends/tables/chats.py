"""Chat data: rows of messages, of a prompt and its completion, of preferences, and of questions with choices.

The formats are those that TRL's users have: `messages` (also `conversations` with from and value), `prompt` and
`completion`, `prompt` with `chosen` and `rejected`, each a string or messages; and benchmark rows of `question`,
`choices` and `answer`. What a chat looks like to a model is its chat template's business, not this module's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

ChatFormat = Literal["messages", "prompt_completion", "preference", "multiple_choice"]
Role = Literal["system", "user", "assistant", "tool"]

LISTS: Final = ("messages", "conversations", "conversation")
"""Columns that hold the messages of a chat."""

COLUMNS: Final[Mapping[ChatFormat, tuple[str, ...]]] = {
    "messages": (*LISTS, "tools"),
    "prompt_completion": ("prompt", "completion", "tools"),
    "preference": ("prompt", "chosen", "rejected", "tools"),
    "multiple_choice": ("question", "choices", "answer", "answerKey"),
}
"""What is read of a row."""

QUESTION, ANSWER = "Question: ", "\nAnswer:"
"""How a question with choices is put to a model, as the ARC tasks of lm-evaluation-harness do."""

PREFIX = "one of chosen and rejected is the beginning of the other"

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

_MORE: Final = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking", "reasoning")
"""Keys of a message that templates read, beside its role and content."""


class Turn(NamedTuple):
    """One message. more: what else a template reads of it, such as tool calls, as JSON; empty: nothing."""

    role: Role
    content: str
    more: str = ""

    def as_message(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content, **(json.loads(self.more) if self.more else {})}


Turns = tuple[Turn, ...]


class Chat(NamedTuple):
    """The messages of a row in their order.

    completion: number of the first message that a model is to give; 0: every answer of the assistant. others: other
    endings in place of the messages from there on: the rejected one, or the wrong choices. plain: strings, which no
    template renders. tools: that the template may name, as JSON; empty: none. choices: the other endings are the wrong
    choices of a question. place: of the row in its file, such as `line 3`.
    """

    turns: Turns
    completion: int = 0
    others: tuple[Turns, ...] = ()
    plain: bool = False
    tools: str = ""
    choices: bool = False
    place: str = ""


class ChatError(ValueError):
    """A row that is no chat; says why, without the place."""


def format_of(names: Sequence[str]) -> ChatFormat | None:
    """Which format columns of these names are; None: no chat data."""
    if any(name in names for name in LISTS):
        return "messages"
    if "chosen" in names:
        return "preference"
    if "prompt" in names and "completion" in names:
        return "prompt_completion"
    answered = "answer" in names or "answerKey" in names  # the second is ARC's
    return "multiple_choice" if answered and {"question", "choices"} <= set(names) else None


def chat_of(record: Mapping[str, Any], format: ChatFormat) -> Chat:
    """The chat of a row; of a preference the chosen answer, of a question the right one.

    Raises:
        ChatError: it is none, or nobody answers in it.
    """
    tools = _tools(record.get("tools"))
    if format == "multiple_choice":
        return _question(record)
    if format == "messages":
        name = next((name for name in LISTS if name in record), LISTS[0])
        return Chat(_checked(_turns(record.get(name), name)), tools=tools)
    names = ("completion",) if format == "prompt_completion" else ("chosen", "rejected")
    prompt, endings = record.get("prompt"), [record.get(name) for name in names]
    if all(isinstance(one, str) for one in endings) and isinstance(prompt, str | None):
        return _plain(prompt, [str(one) for one in endings])
    before = _turns(prompt or [], "prompt", "user")
    whole = [_after(before, _turns(one, name, "assistant")) for one, name in zip(endings, names, strict=True)]
    if len(whole) == 2 and whole[0] == whole[1]:
        raise ChatError("chosen and rejected are the same")
    start = len(before) or _common(whole)
    for one in whole:
        if not any(turn.role == "assistant" for turn in one[start:]):
            raise ChatError("there is no answer of the assistant after the prompt")
    checked = [_checked(one) for one in whole]
    return Chat(checked[0], start, tuple(one[start:] for one in checked[1:]), tools=tools)


def strings(chat: Chat) -> Iterator[str]:
    """Every string of a chat, those of its other endings included."""
    for turns in (chat.turns, *chat.others):
        for turn in turns:
            yield turn.content
            yield turn.more
    yield chat.tools


def as_text(chat: Chat) -> str:
    """A chat for people, and for telling whether two are the same."""
    if chat.plain:
        return "".join(turn.content for turn in chat.turns)
    return "\n".join(f"{turn.role}: {turn.content}{turn.more}" for turn in chat.turns)


def _after(before: Sequence[Turn], ending: Sequence[Turn]) -> list[Turn]:
    """The whole chat: some data sets repeat the prompt in the answer."""
    return list(ending) if list(ending[: len(before)]) == list(before) else [*before, *ending]


def _common(whole: Sequence[Sequence[Turn]]) -> int:
    """How many messages both of a pair begin with; of a single chat all but the last. ChatError: there is no prompt."""
    if len(whole) == 1:
        return len(whole[0]) - 1
    one, other = whole
    found = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if found is None:
        raise ChatError(PREFIX)
    if found == 0:
        raise ChatError("chosen and rejected do not begin with the same prompt")
    return found


def _plain(prompt: str | None, endings: Sequence[str]) -> Chat:
    if len(endings) == 2 and endings[0] == endings[1]:
        raise ChatError("chosen and rejected are the same")
    if prompt and len(endings) == 2 and all(_begins_with(one, prompt) for one in endings):
        endings = [one.removeprefix(prompt) for one in endings]
    elif not prompt and len(endings) == 2:  # a conversation in one string that both begin with
        start = next((at for at, (a, b) in enumerate(zip(*endings, strict=False)) if a != b), None)
        if start is None:
            raise ChatError(PREFIX)
        start -= endings[0][start - 1 : start] == " "
        prompt, endings = endings[0][:start], [one[start:] for one in endings]
    if not all(one.strip() for one in endings):
        raise ChatError("there is no answer after the prompt")
    turns = [(Turn("user", prompt or ""), Turn("assistant", one)) for one in endings]
    return Chat(turns[0], 1, tuple(one[1:] for one in turns[1:]), plain=True)


def _begins_with(answer: str, prompt: str) -> bool:
    """Whether an answer repeats its prompt: words before more, not a greeting that is the answer's first word too."""
    rest = answer.removeprefix(prompt)
    return rest != answer and len(prompt.split()) > 1 and (prompt[-1:].isspace() or rest[:1].isspace())


def _question(record: Mapping[str, Any]) -> Chat:
    """A row of a benchmark: the right choice, and the others in their order."""
    question, answer = record.get("question"), record.get("answer", record.get("answerKey"))
    choices: Any = record.get("choices")
    labels: Any = None
    if isinstance(choices, dict):  # ARC's: {"text": [...], "label": ["A", ...]}
        choices, labels = choices.get("text"), choices.get("label")
    if not isinstance(question, str) or not question.strip():
        raise ChatError("question must be a string that is not blank")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) for one in choices):
        raise ChatError("choices must be a list of at least two strings")
    choices = [one.strip() for one in choices]
    if not all(choices) or len(set(choices)) < len(choices):
        raise ChatError("choices must differ, and none may be blank")
    right = _right(answer, choices, labels)
    turns = [Turn("assistant", f" {one}") for one in choices]
    asked = Turn("user", f"{QUESTION}{question.strip()}{ANSWER}")
    others = tuple((turn,) for number, turn in enumerate(turns) if number != right)
    return Chat((asked, turns[right]), 1, others, plain=True, choices=True)


def _right(answer: Any, choices: Sequence[str], labels: Any) -> int:
    """The number of the right choice: given as its label, as that number from 0, as a letter, or as the choice itself.

    ChatError where it is none of these, or can be read as two choices.
    """
    known = isinstance(answer, str | int) and not isinstance(answer, bool)
    said = str(answer).strip() if known else ""
    if isinstance(labels, list) and len(labels) == len(choices):
        named = [str(label).strip() for label in labels]
        if said in named:
            return named.index(said)
    readings = {choices.index(said)} if isinstance(answer, str) and said in choices else set[int]()
    if said.isdecimal() and int(said) < len(choices):
        readings.add(int(said))
    letters = [chr(ord("A") + number) for number in range(len(choices))]
    if said in letters:
        readings.add(letters.index(said))
    if len(readings) > 1:
        raise ChatError(f"answer {said!r} can be read as the number or letter of a choice, and as another choice")
    if not readings:
        raise ChatError("answer must be the number of a choice from 0, its letter or label, or the choice itself")
    return readings.pop()


def _tools(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ChatError("tools is a string that is not JSON") from error
    if not isinstance(value, list):
        raise ChatError("tools must be a list of functions, or that list as JSON")
    return _as_json(value, "tools")


def _as_json(value: Any, what: str) -> str:
    try:
        found = json.dumps(value, ensure_ascii=False)
        found.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(
            f"{what} holds a value that JSON cannot have, such as bytes, a date, or half a character"
        ) from error
    return found


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
    more = {key: message[key] for key in _MORE if message.get(key) not in (None, "", [])}
    if isinstance(content, list):  # parts, as multimodal data have them
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(parts) != len(content) or not all(isinstance(part, str) for part in parts):
            raise ChatError(f"{name} has a message with parts that are no text")
        content = "".join(str(part) for part in parts)
    if content is None and "tool_calls" in more:
        content = ""
    if not isinstance(content, str):
        raise ChatError(f"{name} has a message without text")
    return Turn(_ROLES[role.casefold()], content, _as_json(more, name) if more else "")


def _checked(turns: Sequence[Turn]) -> Turns:
    if not any(turn.role == "assistant" and (turn.content.strip() or turn.more) for turn in turns):
        raise ChatError("there is no answer of the assistant")
    if any(turn.role == "system" for turn in turns[1:]):
        raise ChatError("a system message stands after the first one")
    said = [turn.role for turn in turns if turn.role in ("user", "assistant")]
    if said[0] != "user" or any(one == other == "user" for one, other in pairwise(said)):
        raise ChatError("the roles are out of order: a chat begins with the user, who speaks once before each answer")
    return tuple(turns)
