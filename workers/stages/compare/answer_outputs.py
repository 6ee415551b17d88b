"""How both models do on the answers of chats: their tokens, preferences, and questions with choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workers.analysis.mcnemar import mcnemar_p
from workers.results.answers import (
    AnswerOutputs,
    AnswerQuality,
    ChoiceOutputs,
    ChoiceQuality,
    PreferenceOutputs,
)
from workers.results.measured import Measured
from workers.results.warnings import ReportWarning
from workers.stages.common.endings import Endings, answer_characters
from workers.stages.common.evaluation import EvalSet, Predicted, Scores, by_text, quality
from workers.stages.common.intervals import change, ratio, share

BETA = 0.1
"""Of rewards where no fine-tune names another: TRL's default."""

STOPS = 0.1
"""A model that gives the end token a smaller probability where answers end, by its interval, never learnt to stop."""

MOST_NATS = 700.0


@dataclass
class AnswerScores:
    """Sums over the tokens of answers, text by text, as batches come; [N] each.

    base, tuned: negative log-likelihood, nats. base_ends, tuned_ends: the same of the tokens that end the last answers.
    differs: tokens of which the two models' likeliest differ.
    """

    texts: int
    base: Scores = field(init=False)
    tuned: Scores = field(init=False)
    base_ends: Scores = field(init=False)
    tuned_ends: Scores = field(init=False)
    differs: Scores = field(init=False)

    def __post_init__(self) -> None:
        for name in ("base", "tuned", "base_ends", "tuned_ends", "differs"):
            setattr(self, name, Scores.none(self.texts))

    def add(self, tuned: Predicted, base: Predicted | None) -> None:
        """The answers of both models to one batch."""
        if tuned.answers is None or tuned.ends is None:
            return
        for name, found in (("tuned", tuned), ("base", base)):
            if found is not None:
                self._add(name, quality(found.of(tuned.answers), "causal_lm", self.texts))
                self._add(f"{name}_ends", quality(found.of(tuned.ends), "causal_lm", self.texts))
        if base is not None:
            one, other = tuned.of(tuned.answers), base.of(tuned.answers)
            differs = one.log_probs.argmax(-1) != other.log_probs.argmax(-1)
            self._add("differs", by_text(differs, one.texts, self.texts))

    def _add(self, name: str, scores: Scores) -> None:
        setattr(self, name, getattr(self, name).plus(scores))


def answer_outputs(asked: EvalSet, scores: AnswerScores, compared: bool) -> AnswerOutputs | None:
    """The answers' tokens; None where no text has any.

    Args:
        compared: the base model was asked too.
    """
    if not float(scores.tuned.counts.sum()):
        return None
    rise = scores.tuned.less(scores.base)
    return AnswerOutputs(
        texts=int((scores.tuned.counts > 0).sum()),
        tokens=int(scores.tuned.counts.sum()),
        base=_quality(asked, scores.base, scores.base_ends) if compared else None,
        tuned=_quality(asked, scores.tuned, scores.tuned_ends),
        perplexity_ratio=ratio(*asked.grouped(rise), _exponential, (0.0, math.inf)) if compared else None,
        log_prob_change=ratio(*asked.grouped(rise._replace(sums=-rise.sums))) if compared else None,
        disagreement=share(*asked.by_unit(scores.differs)) if compared else None,
    )


def stop_warnings(found: AnswerOutputs | None, tokenizer: PreTrainedTokenizerBase) -> list[ReportWarning]:
    """Says where the tuned model does not end its answers as the data do."""
    ends = found.tuned.end_probability if found is not None else None
    if found is None or ends is None or ends.value is None:
        return []
    if (ends.value if ends.high is None else ends.high) >= STOPS:
        return []
    message = (
        f"where answers end, the tuned model gives the token that ends them a probability of {ends.value:.3f}: it will "
        "go on until the limit of tokens"
    )
    before = found.base.end_probability if found.base is not None else None
    if before is not None and before.value is not None:
        message += f" (base model {before.value:.3f})"
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        message += (
            ". Padding and end token are the same: training code that masks padding by its id never trains the end"
        )
    return [ReportWarning(code="never_stops", message=message)]


def _quality(asked: EvalSet, scores: Scores, ends: Scores) -> AnswerQuality:
    grouped = asked.grouped(scores)
    return AnswerQuality(
        perplexity=ratio(*grouped, _exponential, (1.0, math.inf)),
        log_prob=ratio(-grouped.sums, grouped.counts, bounds=(-math.inf, 0.0)),
        end_probability=ratio(*asked.grouped(ends._replace(sums=_probabilities(ends))), bounds=(0.0, 1.0))
        if float(ends.counts.sum())
        else None,
    )


def _probabilities(ends: Scores) -> Tensor:
    """Of the end token of each text: from its negative logarithm; 0 where a text has none, which does not count."""
    return (-ends.sums).exp() * ends.counts


def _exponential(nats: float) -> float:
    return math.exp(min(nats, MOST_NATS))


@dataclass(frozen=True)
class Asked:
    """The texts that have other endings, and what both models give to theirs and to the others.

    whole: sums over the answers of the analysed texts. others: over those of the endings, in the order of `endings`.
    """

    eval_set: EvalSet
    endings: Endings
    whole: AnswerScores
    others: AnswerScores
    compared: bool

    @cached_property
    def places(self) -> dict[int, list[int]]:
        """By number of an analysed text that has other endings, which of `endings` they are."""
        found: dict[int, list[int]] = {}
        for place, owner in enumerate(self.endings.owners):
            found.setdefault(owner, []).append(place)
        return found

    def log_probs(self, side: str) -> list[Tensor]:
        """By text, the log-probability of its answer and of each other ending, [1 + E_i], nats."""
        own, other = (-getattr(scores, side).sums for scores in (self.whole, self.others))
        return [torch.cat([own[text : text + 1], other[places]]) for text, places in self.places.items()]

    def characters(self) -> list[Tensor]:
        """By text, the characters of its answer and of each other ending, [1 + E_i]."""
        rows, endings = self.eval_set.rows, self.endings.rows
        return [
            torch.tensor([answer_characters(one.text) for one in (rows[text], *(endings[place] for place in places))])
            for text, places in self.places.items()
        ]

    def scores(self, values: Sequence[float]) -> Scores:
        """One number for each of these texts as scores of all analysed texts."""
        numbers = torch.tensor(list(self.places))
        return by_text(torch.tensor(values, dtype=torch.float64), numbers, len(self.eval_set.rows))

    def share(self, hits: Sequence[bool]) -> Measured:
        """Of these texts, with its interval."""
        return share(*self.eval_set.by_unit(self.scores([float(hit) for hit in hits])))

    def gained(self, before: Sequence[bool], after: Sequence[bool]) -> Measured:
        """The change of a share of these texts, with its interval."""
        gains, losses = (
            self.eval_set.by_unit(self.scores([float(one) for one in some]))
            for some in (
                [new and not old for old, new in zip(before, after, strict=True)],
                [old and not new for old, new in zip(before, after, strict=True)],
            )
        )
        return change(gains.sums, losses.sums, gains.counts)


def preference_outputs(asked: Asked, beta: float) -> PreferenceOutputs:
    """Which of two answers the models prefer, and the rewards that the fine-tune implies (Rafailov et al. 2023)."""
    tuned = asked.log_probs("tuned")
    prefers = [bool(one[0] > one[1]) for one in tuned]
    base = asked.log_probs("base") if asked.compared else None
    before = [bool(one[0] > one[1]) for one in base] if base is not None else None
    margins = None
    if base is not None:
        gains = [new - old for new, old in zip(tuned, base, strict=True)]
        margins = [beta * float(gain[0] - gain[1]) for gain in gains]
    return PreferenceOutputs(
        pairs=len(tuned),
        skipped=asked.endings.skipped,
        beta=beta,
        base_accuracy=asked.share(before) if before is not None else None,
        tuned_accuracy=asked.share(prefers),
        accuracy_change=asked.gained(before, prefers) if before is not None else None,
        reward_margin=ratio(*asked.eval_set.grouped(asked.scores(margins))) if margins is not None else None,
        reward_accuracy=asked.share([margin > 0 for margin in margins]) if margins is not None else None,
    )


def choice_outputs(asked: Asked) -> ChoiceOutputs:
    """Which choice is likeliest, as a whole and by character; the right one comes first of each text's."""
    lengths = asked.characters()
    tuned, base = asked.log_probs("tuned"), asked.log_probs("base") if asked.compared else None
    after = [_likeliest(one) for one in tuned]
    before = [_likeliest(one) for one in base] if base is not None else None
    right = [choice == 0 for choice in after]
    was_right = [choice == 0 for choice in before] if before is not None else None
    return ChoiceOutputs(
        questions=len(tuned),
        skipped=asked.endings.skipped,
        chance=sum(1 / len(one) for one in tuned) / len(tuned),
        base=_choices(asked, base, lengths) if base is not None else None,
        tuned=_choices(asked, tuned, lengths),
        accuracy_change=asked.gained(was_right, right) if was_right is not None else None,
        changed=asked.share([old != new for old, new in zip(before, after, strict=True)])
        if before is not None
        else None,
        mcnemar_p=_mcnemar(asked.eval_set, was_right, right) if was_right is not None else None,
    )


def _choices(asked: Asked, log_probs: Sequence[Tensor], lengths: Sequence[Tensor]) -> ChoiceQuality:
    by_length = [one / many for one, many in zip(log_probs, lengths, strict=True)]
    return ChoiceQuality(
        accuracy=asked.share([_likeliest(one) == 0 for one in log_probs]),
        accuracy_by_length=asked.share([_likeliest(one) == 0 for one in by_length]),
    )


def _likeliest(scores: Tensor) -> int:
    """The choice with the largest score; the right one, which comes first, wins no tie."""
    best = scores.max()
    places = (scores == best).nonzero()[:, 0].tolist()
    return int(places[-1])


def _mcnemar(asked: EvalSet, before: Sequence[bool], after: Sequence[bool]) -> float | None:
    """None where texts are not independent of each other."""
    if asked.tokenization.units is not None:
        return None
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    return mcnemar_p(gained, lost)
