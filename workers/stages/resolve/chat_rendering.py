"""Chats of the data set as the models read them: rendered by a chat template, with the role of every part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from workers.models.chats import Renderer, TemplateError
from workers.models.tokenizers import load_tokenizer, with_chat_template
from workers.results.warnings import ReportWarning
from workers.stages.resolve.checkpoint_checks import stop_tokens

SHOWN_REASONS = 3


def rendered(
    rows: list[Row], base: Path, tuned: Path | None, template: str | None = None
) -> tuple[list[Row], list[ReportWarning]]:
    """The same rows, with the text of each chat as the asked template has it, the tuned model's, or else the base's.

    Rows that are no chats stay; chats that the template cannot render are left out.

    Raises:
        InputError: there is no template, or it cannot render any of the chats.
    """
    chats = sum(row.chat is not None for row in rows)
    if not chats:
        return rows, []
    if all(row.chat is None or row.chat.plain for row in rows):
        renderer, told = Renderer(load_tokenizer(base, "/base/uri")), []
    else:
        renderer, whose = _renderer(base, tuned, template)
        message = f"{chats} rows are chats, rendered by {whose}"
        told = [ReportWarning(code="chats_rendered", message=message), *_endless(renderer, whose, tuned or base)]
    found, refused = list[Row](), Counter[str]()
    first = ""
    for row in rows:
        if row.chat is None:
            found.append(row)
            continue
        try:
            text, others = renderer.rendered(row.chat)
        except TemplateError as error:
            refused[str(error)] += 1
            first = first or row.chat.place
        else:
            found.append(row._replace(text=text, others=others))
    if refused:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in refused.most_common(SHOWN_REASONS))
        message = f"the chat template cannot render {refused.total()} of {chats} chats, the first at {first}: {reasons}"
        if refused.total() == chats:
            raise InputError.at("/dataset/uri" if template is None else "/dataset/chat_template", message)
        told.append(ReportWarning(code="unusable_chats", message=f"{message}. They were skipped"))
    return found, told


def _endless(renderer: Renderer, whose: str, folder: Path) -> list[ReportWarning]:
    """Says that a template teaches no model to stop."""
    if renderer.ends_answers(stop_tokens(folder, renderer.tokenizer)):
        return []
    message = (
        f"{whose} ends no answer with a special token at which generation stops, so nothing in these chats teaches a "
        "model to stop"
    )
    return [ReportWarning(code="never_stops", message=message)]


def _renderer(base: Path, tuned: Path | None, template: str | None) -> tuple[Renderer, str]:
    if template is not None:
        tokenizer = load_tokenizer(base, "/base/uri")
        tokenizer.chat_template = template
        return Renderer(tokenizer), "the chat template of the request"
    found = with_chat_template(base, tuned)
    if found is None:
        raise InputError.at(
            "/dataset/uri",
            "the data set holds chats, but neither checkpoint has a chat template (chat_template.jinja, or a field of "
            "tokenizer_config.json). Add one, set dataset.chat_template, or render the chats to texts",
        )
    tokenizer, whose = found
    return Renderer(tokenizer), f"the chat template of the {whose} model"
