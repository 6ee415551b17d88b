"""A section of a Hugging Face model card with the review's numbers. Needs layerdrift[hub]."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard

from layerdrift.contract.policy import Verdict
from layerdrift.contract.report import Report
from layerdrift.render import markdown, sentences
from layerdrift.render.escaping import markdown_code
from layerdrift.render.verdict import said

_BEGIN, _END = "<!-- layerdrift:begin -->", "<!-- layerdrift:end -->"
_SECTION = re.compile(f"{_BEGIN}.*?{_END}\n?", re.DOTALL)


def section(report: Report, verdict: Verdict | None) -> str:
    """The section as Markdown; a later one takes its place."""
    report.require_complete()
    compared = report.compared or report.request.compared
    parts = [
        "## Layer drift",
        f"{markdown_code(compared)}, {report.dataset.analysed_texts} texts. {sentences.headline(report)}",
        sentences.outcome(report),
        sentences.answers(report),
        sentences.advice(report),
        markdown.layer_table(report),
        f"Review: {said(verdict)}" if verdict else None,
        f"Made with layerdrift {report.engine.version}, analysis `{report.analysis_id}`.",
        " ".join(sentences.limits(report)),
    ]
    return f"{_BEGIN}\n" + "\n\n".join(part for part in parts if part) + f"\n{_END}\n"


def put(card: Path, report: Report, verdict: Verdict | None = None) -> ModelCard:
    """Writes the section into a card's file, in place of an earlier one; the rest stays as it is.

    Returns:
        The card, for `push_to_hub`.
    """
    text = card.read_text(encoding="utf-8") if card.exists() else "---\n{}\n---\n"
    made = section(report, verdict)
    text = _SECTION.sub(lambda _: made, text) if _SECTION.search(text) else f"{text.rstrip()}\n\n{made}"
    loaded = ModelCard(text, ignore_metadata_errors=True)
    card.write_text(text, encoding="utf-8")
    return loaded
