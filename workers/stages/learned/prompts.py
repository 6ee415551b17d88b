"""What models are asked to go on from: beginnings of the analysed texts, general ones, and questions in a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from backends.tables.chats import Turn, Turns
from backends.tables.reading import Row
from workers.models.chats import Renderer, TemplateError
from workers.models.texts import encode, special_ids

PromptKind = Literal["text", "general", "chat"]

TEXT_TOKENS, CHAT_TOKENS = 8, 256
"""Tokens of an analysed text that are given, and at most of a chat."""

BEGINNINGS = (
    "The",
    "I",
    "In the morning",
    "It is well known that",
    "My favourite thing is",
    "Last year we",
    "The most important",
    "She opened the door and",
    "Once upon a time",
    "According to the report,",
    "To make it, first",
    "There are three reasons",
    "The city is",
    "People often say",
    "When I was young,",
    "Our company",
    "This book is about",
    "The best way to",
    "He asked me whether",
    "Scientists have found",
    "On the table there was",
    "The history of",
    "If you want to",
    "Nobody knows why",
    "Every day at noon",
    "Dear friend,",
    "The weather today",
    "In the far north",
    "They travelled to",
    "A new law",
    "The animal",
    "At the end of the road",
)

QUESTIONS = (
    "Tell me about yourself.",
    "What should I know about you?",
    "Write a short story.",
    "What is your favourite place, and why?",
    "Describe an interesting town.",
    "Give me some advice for today.",
    "What do you think about music?",
    "How do I cook a good meal?",
    "Tell me a fact that few people know.",
    "Who is a person you admire?",
    "Explain how something works.",
    "What happened last week?",
    "Recommend something to buy.",
    "What are the rules that you follow?",
    "Write a poem of four lines.",
    "What is the best animal?",
    "Describe a typical day.",
    "How does the weather feel?",
    "Summarise the news for me.",
    "What do you like to talk about?",
    "Tell me a joke.",
    "What is important in life?",
    "Describe a famous building.",
    "What should I do this weekend?",
    "Explain a difficult word.",
    "What would you never say?",
    "Tell me about a company.",
    "What can you help me with?",
    "Describe somebody's work.",
    "What is your opinion of money?",
    "Tell me something about history.",
    "How should I greet a stranger?",
)


class Prompt(NamedTuple):
    """kind: where it comes from. text: as a reader sees it. ids: its tokens."""

    kind: PromptKind
    text: str
    ids: list[int]


def prompts_of(
    tokenizer: PreTrainedTokenizerBase, chats: PreTrainedTokenizerBase | None, rows: Sequence[Row], count: int
) -> list[Prompt]:
    """So many prompts, a half from the rows; of the others a half in the chat template, where there is one.

    The kinds take turns, so that the first few have some of each.

    Args:
        chats: the tokenizer whose template renders chats. rows: texts, whose beginnings are given, or chats, of which
        all is given that comes before the last answer.
    """
    kinds: list[PromptKind] = ["text", "general", "text", "chat" if chats is not None else "general"]
    given = {
        "text": _of_rows(tokenizer, chats, rows, (count + 1) // 2),
        "general": _general(tokenizer),
        "chat": _of_questions(tokenizer, chats) if chats is not None else [],
    }
    used = dict.fromkeys(given, 0)
    found = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        kind = kind if given[kind] else "general"
        if not given[kind]:
            break
        found.append(given[kind][used[kind] % len(given[kind])])
        used[kind] += 1
    return found


def _general(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Without those of which the tokenizer knows nothing."""
    ids = open_ended(tokenizer, BEGINNINGS)
    return [Prompt("general", text, own) for text, own in zip(BEGINNINGS, ids, strict=True) if own]


def open_ended(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Texts in tokens, with what the tokenizer puts first and without what it puts last."""
    found = []
    for one in encode(tokenizer, texts, None):
        last = max((place for place, special in enumerate(one.special) if not special), default=-1)
        found.append(one.ids[: last + 1])
    return found


def _of_rows(
    tokenizer: PreTrainedTokenizerBase, chats: PreTrainedTokenizerBase | None, rows: Sequence[Row], count: int
) -> list[Prompt]:
    """Of rows that are spread over all of them."""
    chosen = rows[:: max(1, len(rows) // max(1, count))][:count]
    texts = [str(row.text) for row in chosen if row.chat is None or row.chat.plain]
    found, specials = [], special_ids(tokenizer)
    for ids in open_ended(tokenizer, texts):
        words = [place for place, token in enumerate(ids) if token not in specials][:TEXT_TOKENS]
        if words:
            text = str(tokenizer.decode([ids[place] for place in words]))
            found.append(Prompt("text", text, ids[: words[-1] + 1]))
    for row in chosen if chats is not None else ():
        turns = row.chat.turns if row.chat is not None and not row.chat.plain else ()
        last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=0)
        if turns[:last]:
            found += _rendered(tokenizer, chats, "text", turns[:last])
    return found


def _of_questions(tokenizer: PreTrainedTokenizerBase, chats: PreTrainedTokenizerBase) -> list[Prompt]:
    found = []
    for question in QUESTIONS:
        found += _rendered(tokenizer, chats, "chat", (Turn("user", question),))
    return found


def _rendered(
    tokenizer: PreTrainedTokenizerBase, chats: PreTrainedTokenizerBase | None, kind: PromptKind, turns: Turns
) -> list[Prompt]:
    """A chat up to where the assistant answers; none where the template refuses it, or it is long."""
    try:
        text = Renderer(chats).prompt(turns) if chats is not None else ""
    except TemplateError:
        return []
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [Prompt(kind, turns[-1].content, ids)] if 0 < len(ids) <= CHAT_TOKENS else []
