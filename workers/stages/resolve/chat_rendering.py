"""Chats as a model reads them: rendered by a checkpoint's chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from backends.tables.chats import Chat
from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from workers.models.tokenizers import with_chat_template
from workers.results.warnings import ReportWarning


def rendered(rows: list[Row], base: Path, tuned: Path | None) -> tuple[list[Row], list[ReportWarning]]:
    """The same rows, with the text of each chat as the tuned model's chat template has it, or the base's.

    Rows that are no chats stay. Every chat is rendered whole, its last answer included.

    Raises:
        InputError: neither checkpoint has a template, or it cannot render one of the chats.
    """
    chats = sum(row.chat is not None for row in rows)
    if not chats:
        return rows, []
    template = with_chat_template(base, tuned)
    if template is None:
        raise InputError.at(
            "/dataset/uri",
            "the data set holds chats, but neither checkpoint has a chat template (chat_template.jinja, or a field of "
            "tokenizer_config.json). Add one, or render the chats to texts",
        )
    tokenizer, whose = template
    found = [row if row.chat is None else row._replace(text=_text(tokenizer, row.chat, number)) for number, row in
             enumerate(rows, start=1)]  # fmt: skip
    message = (
        f"{chats} rows are chats; the chat template of the {whose} model rendered them. Numbers are over all of their "
        "tokens but special ones, so the template's own words count too"
    )
    return found, [ReportWarning(code="chats_rendered", message=message)]


def _text(tokenizer: PreTrainedTokenizerBase, chat: Chat, number: int) -> str:
    messages: list[Any] = [{"role": turn.role, "content": turn.content} for turn in chat]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template is a program of the checkpoint's: it may refuse a chat for any reason
        reason = (str(error) or type(error).__name__).splitlines()[0]
        detail = f"the chat template cannot render chat {number} ({messages[0]['content'][:40]!r} …): {reason}"
        raise InputError.at("/dataset/uri", detail) from error
