"""The texts on which the answers of two classifiers, or masked language models, differ most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backends.tables.reading import Row
from workers.results.outputs import DivergentText, LabelProbability
from workers.stages.common.evaluation import Predicted, Scores

SHOWN, CHARACTERS = 20, 240
"""Texts that are told, and characters of each."""

LEAST_BITS = 0.01
"""Divergence of a text that is told."""


class TopAnswers:
    """The likeliest class of each text in both models, and its probability; [N] each."""

    def __init__(self, texts: int) -> None:
        self.classes = {side: torch.zeros(texts, dtype=torch.int64) for side in ("base", "tuned")}
        self.probabilities = {side: torch.zeros(texts) for side in ("base", "tuned")}

    def add(self, side: str, found: Predicted) -> None:
        """Takes the answers to one batch."""
        top = found.log_probs.max(-1)
        self.classes[side][found.texts] = top.indices
        self.probabilities[side][found.texts] = top.values.exp().float()

    def told(self, side: str, text: int, names: Sequence[str]) -> LabelProbability:
        """Of one text."""
        probability = min(1.0, float(self.probabilities[side][text]))
        return LabelProbability(label=names[int(self.classes[side][text])], probability=probability)


def divergent_texts(
    rows: Sequence[Row], divergence: Scores, answers: TopAnswers | None, names: Sequence[str]
) -> list[DivergentText]:
    """Those with the largest mean Jensen-Shannon divergence, most first.

    Args:
        divergence: by text, bits. answers: of classifiers. names: of the classes.
    """
    means: Tensor = divergence.sums / divergence.counts.clamp_min(1)
    order = means.argsort(descending=True, stable=True)[:SHOWN].tolist()
    return [
        DivergentText(
            text=text,
            shown=_shown(rows[text]),
            divergence=min(1.0, float(means[text])),
            base=answers.told("base", text, names) if answers is not None else None,
            tuned=answers.told("tuned", text, names) if answers is not None else None,
            label=rows[text].label,
        )
        for text in order
        if float(means[text]) >= LEAST_BITS
    ]


def _shown(row: Row) -> str:
    text = row.text if row.pair is None else f"{row.text} | {row.pair}"
    return text if len(text) <= CHARACTERS else text[:CHARACTERS].rstrip() + " …"
