"""Chats as a model reads them: the text that a chat template makes, and whose words each part of it is.

Templates do not tell which part of their text is whose. It is found by rendering the chat again with marks in place of
all messages, and where a template treats messages in a way of its own, with a mark in place of each of them. Tokens are
not known here: `workers.models.texts` gives each the role of its characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, Self, get_args

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from backends.tables.chats import Chat, Turn, Turns
from layerdrift.contract.names import RoleName

TOKEN_ROLES: Final[tuple[RoleName, ...]] = get_args(RoleName)
"""By their number in `Batch.roles`; a token of two roles has the later one."""

ASSISTANT: Final = TOKEN_ROLES.index("assistant")

_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
"""Around the marks that stand in for messages: characters of no script."""


class Span(NamedTuple):
    """Characters `start` to `end` of a rendered chat, and whose they are."""

    start: int
    end: int
    role: RoleName


class ChatText(str):
    """A rendered chat. A string, so that whatever reads texts reads it.

    spans: in their order, without overlaps; what lies between them is the template's. completion: the character at
    which what the model is to give begins; None: every span of the assistant is. plain: it was joined of strings, so
    that a tokenizer adds its special tokens, as it does to texts; a template has written them already.
    """

    spans: tuple[Span, ...]
    completion: int | None
    plain: bool

    def __new__(cls, text: str, spans: Iterable[Span], completion: int | None = None, plain: bool = False) -> Self:
        made = super().__new__(cls, text)
        made.spans, made.completion, made.plain = tuple(spans), completion, plain
        return made

    def __getnewargs__(self) -> tuple[str, tuple[Span, ...], int | None, bool]:  # type: ignore[override]
        return str(self), self.spans, self.completion, self.plain


class TemplateError(ValueError):
    """A template that cannot render a chat; says why."""


@dataclass(frozen=True)
class Renderer:
    """Renders chats by the chat template of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def rendered(self, chat: Chat) -> tuple[ChatText, tuple[ChatText, ...]]:
        """The chat, and the chat with each of its other endings.

        Raises:
            TemplateError: the template refuses it, or shows nothing of an answer.
        """
        before = chat.turns[: chat.completion]
        every = (chat.turns, *((*before, *ending) for ending in chat.others))
        texts = [_joined(turns) if chat.plain else self._text(turns, chat) for turns in every]
        return texts[0], tuple(texts[1:])

    def prompt(self, turns: Turns, tools: str = "") -> str:
        """A chat up to where the assistant begins to answer."""
        return self._render(turns, tools, prompt=True)

    def ends_answers(self, stops: Set[str]) -> bool:
        """Whether one of `stops` ends answers, or begins the next turn.

        Args:
            stops: the tokens at which generation stops.
        """
        if not self._specials:
            return True
        if self._endings:
            return any(stop in self._endings[0] for stop in stops)
        mark = f"{_OPEN}{_CLOSE}"
        turns = (Turn("user", "a"), Turn("assistant", mark), Turn("user", "b"))
        try:
            _, _, after = self._render(turns, "").rpartition(mark)
        except TemplateError:
            return True
        found = re.match(rf"\s*({'|'.join(map(re.escape, self._specials))})", after)
        return found is not None and found[1] in stops

    @cached_property
    def _specials(self) -> list[str]:
        """The special tokens of the tokenizer, long ones first."""
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return sorted({*added, *map(str, self.tokenizer.all_special_tokens)}, key=len, reverse=True)

    def _text(self, turns: Turns, chat: Chat) -> ChatText:
        whole = self._render(turns, chat.tools)
        spans = self._by_marks(whole, turns, chat.tools) or self._one_by_one(whole, turns, chat.tools)
        spans = [self._with_end(whole, span) if span.role == "assistant" else span for span in spans]
        if self._tells_answers:
            spans = self._as_told(turns, chat.tools, spans)
        if not any(span.role == "assistant" and span.end > span.start for span in spans):
            raise TemplateError("it shows nothing of the assistant's answers")
        completion = self._completion(whole, turns, chat, spans) if chat.completion else None
        return ChatText(whole, [span for span in spans if span.end > span.start], completion)

    def _completion(self, whole: str, turns: Turns, chat: Chat, spans: Sequence[Span]) -> int:
        """Where the completion begins: after the prompt, or, where the template renders the prompt alone otherwise than
        the beginning of the whole, with the first answer after it.
        """
        prompt = self._render(turns[: chat.completion], chat.tools, prompt=True)
        if whole.startswith(prompt):
            return len(prompt)
        answers = [span for span in spans if span.role == "assistant"]
        spoken = [turn.role == "assistant" for turn in turns]
        if len(answers) != sum(spoken):
            raise TemplateError("it renders the prompt alone otherwise than the beginning of the whole chat")
        return answers[sum(spoken[: chat.completion])].start

    def _by_marks(self, whole: str, turns: Turns, tools: str) -> list[Span] | None:
        """Where the messages stand: between the parts of the template that the same chat of marks shows.

        None where the text is not these parts and the messages.
        """
        if any(turn.more or _OPEN in turn.content for turn in turns):
            return None
        marks = [f"{_OPEN}{number}{_CLOSE}" for number in range(len(turns))]
        shown = self._render([turn._replace(content=mark) for turn, mark in zip(turns, marks, strict=True)], tools)
        found, at = list[Span](), 0
        for turn, mark in zip(turns, marks, strict=True):
            part, seen, shown = shown.partition(mark)
            if not seen or not whole.startswith(part, at):
                return None
            at += len(part)
            begins = at - len(part) + self._after_prompt(part) if turn.role == "assistant" else at
            content = next((one for one in _as_shown(turn.content) if whole.startswith(one, at)), None)
            if content is None:
                return None
            following = shown.partition(_OPEN)[0]
            if not whole.startswith(following, at + len(content)):
                return None
            at += len(content)
            found.append(Span(begins, at, turn.role))
        return found if whole[at:] == shown else None

    def _one_by_one(self, whole: str, turns: Turns, tools: str) -> list[Span]:
        """Where the messages stand: each is where the text changes once a mark stands in for it.

        A message that is more than its content, as a call of a tool is, ends where the chat up to it ends.
        """
        found, before = list[Span](), 0
        for number, turn in enumerate(turns):
            mark = turn._replace(content=f"{_OPEN}{_CLOSE}")
            marked = self._render([*turns[:number], mark, *turns[number + 1 :]], tools)
            if marked == whole and not turn.more:
                continue  # the template leaves this message out
            start = _common_length(marked, whole)
            end = len(whole) - _common_length(marked[start:][::-1], whole[start:][::-1])
            if turn.role == "assistant":
                prompt = _common_length(self._render(turns[:number], tools, prompt=True), whole)
                start = prompt if (before if before <= start else 0) <= prompt <= start else start
            if turn.more and turn.role == "assistant":
                end = _common_length(self._render(turns[: number + 1], tools), whole)
                ending = next((one.strip() for one in self._endings if whole[:end].rstrip().endswith(one.strip())), "")
                end = start + len(whole[start:end].rstrip().removesuffix(ending).rstrip())
            if start < end:
                found.append(Span(start, end, turn.role))
                before = end
        return _apart(found)

    def _after_prompt(self, part: str) -> int:
        """Of what a template puts before an answer, how much belongs to the prompt."""
        if not self._generation_prompt:
            return len(part)
        at = part.rfind(self._generation_prompt)
        return len(part) if at < 0 else at + len(self._generation_prompt)

    @cached_property
    def _generation_prompt(self) -> str:
        """What the template adds where the assistant is to answer."""
        turns = (Turn("user", "a"),)
        try:
            without, asked = self._render(turns, ""), self._render(turns, "", prompt=True)
        except TemplateError:
            return ""
        return asked.removeprefix(without) if asked.startswith(without) else ""

    def _with_end(self, whole: str, span: Span) -> Span:
        """With the special tokens that end an answer: the model is to give them too."""
        ending = next((one for one in self._endings if whole.startswith(one, span.end)), "")
        return span._replace(end=span.end + len(ending))

    @cached_property
    def _endings(self) -> list[str]:
        """What the template puts after an answer: white space and special tokens, and the same with fewer of these."""
        mark = f"{_OPEN}{_CLOSE}"
        every = self._specials
        if not every:
            return []
        try:
            _, _, after = self._render((Turn("user", "a"), Turn("assistant", mark)), "").rpartition(mark)
        except TemplateError:
            return []
        one, found, at = re.compile(rf"\s*(?:{'|'.join(map(re.escape, every))})"), list[str](), 0
        while (special := one.match(after, at)) is not None:
            at = special.end()
            found.insert(0, after[:at])
        return found

    @cached_property
    def _tells_answers(self) -> bool:
        """Whether the template itself marks what the assistant gives."""
        return bool(re.search(r"{%-?\s*generation\b", str(self.tokenizer.chat_template)))

    def _as_told(self, turns: Turns, tools: str, spans: Sequence[Span]) -> list[Span]:
        """The spans, with those of the assistant as the template marks them."""
        more: dict[str, Any] = {"tools": json.loads(tools)} if tools else {}
        rendered: Any = render_jinja_template(
            [[turn.as_message() for turn in turns]],
            chat_template=str(self.tokenizer.chat_template),
            return_assistant_tokens_mask=True,
            **(more | dict(self.tokenizer.special_tokens_map)),
        )
        answers = [Span(start, end, "assistant") for start, end in rendered[1][0] if end > start]
        others = [
            span
            for span in spans
            if span.role != "assistant" and not any(one.start < span.end and span.start < one.end for one in answers)
        ]
        return sorted([*others, *answers])

    def _render(self, turns: Sequence[Turn], tools: str, prompt: bool = False) -> str:
        more: dict[str, Any] = {"tools": json.loads(tools)} if tools else {}
        messages = [turn.as_message() for turn in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **more)
            )
        except Exception as error:  # a template is a program of the checkpoint's: it may refuse a chat for any reason
            raise TemplateError((str(error) or type(error).__name__).splitlines()[0]) from error


def _joined(turns: Turns) -> ChatText:
    """A prompt and its completion as strings, which no template renders."""
    text, spans = "", list[Span]()
    for turn in turns:
        spans.append(Span(len(text), len(text) + len(turn.content), turn.role))
        text += turn.content
    return ChatText(text, [span for span in spans if span.end > span.start], len(turns[0].content), plain=True)


def _apart(spans: Sequence[Span]) -> list[Span]:
    """In the order of the text, which may be another one than the chat's, without those that reach into another."""
    found = list[Span]()
    for span in sorted(spans):
        if not found or found[-1].end <= span.start:
            found.append(span)
    return found


def _as_shown(content: str) -> Iterator[str]:
    """A message as templates show it: as it is, or without white space at an end."""
    yield from (content, content.strip(), content.lstrip(), content.rstrip())


def _common_length(one: str, other: str) -> int:
    """Characters that both begin with."""
    if other.startswith(one):
        return len(one)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
