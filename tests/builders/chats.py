"""Chats that a tiny language model can learn: a judgement on a sentence, in one word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.tables.chats import Chat, Turn
from backends.tables.reading import Row
from tests.builders.families import made
from tests.builders.models import tiny_tokenizer
from tests.builders.stages import resolved
from tests.builders.texts import make_texts
from workers.models.chats import Renderer
from workers.models.tokenizers import load_tokenizer
from workers.stages.common.inputs import Resolved, Split

TEMPLATE = (
    "{% for m in messages %}[CLS] {{ 'plot' if m.role == 'user' else 'scene' }} {{ m.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] scene {% endif %}"
)
PRAISE = {"good", "great", "bright"}


def language_model(folder: Path, seed: int = 0, family: str = "llama") -> Path:
    """A tiny language model with a chat template, saved."""
    from tests.stages.test_layered import with_head

    model: Any = with_head(made(family, seed))
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def chats(count: int, seed: int = 0, preferences: bool = False) -> list[Chat]:
    """A sentence and the judgement on it; of preferences also the opposite one."""
    found = []
    for text in make_texts(count, seed):
        praised = bool(PRAISE & set(text.split()))
        right, wrong = ("great", "awful") if praised else ("awful", "great")
        others = ((Turn("assistant", wrong),),) if preferences else ()
        found.append(Chat((Turn("user", text), Turn("assistant", right)), 1, others))
    return found


def chat_rows(base: Path, given: list[Chat]) -> list[Row]:
    """Chats rendered as the base's template has them."""
    renderer, rows = Renderer(load_tokenizer(base, "/base/uri")), []
    for chat in given:
        text, others = renderer.rendered(chat)
        rows.append(Row(text, None, None, None, chat, others))
    return rows


def resolved_chats(
    base: Path, texts: int = 60, train: int = 64, held_out: int = 20, preferences: bool = False
) -> Resolved:
    """What stage `resolve` leaves of chats."""
    rows = chat_rows(base, chats(texts + train + held_out, preferences=preferences))
    split = Split(rows[:texts], rows[texts : texts + train], [], rows[texts + train :])
    return replace(resolved(base), split=split, length=64, usable_rows=len(rows))
