"""What both models make of answers: of chats, of preferences, and of questions with choices."""

from __future__ import annotations

from dataclasses import dataclass

from workers.results.measured import Measured


@dataclass(frozen=True, kw_only=True)
class AnswerQuality:
    """One model on the tokens of answers, end tokens included."""

    perplexity: Measured
    log_prob: Measured
    end_probability: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerOutputs:
    """Both models on the tokens of answers."""

    texts: int
    tokens: int
    base: AnswerQuality | None
    tuned: AnswerQuality
    perplexity_ratio: Measured | None
    log_prob_change: Measured | None
    disagreement: Measured | None


@dataclass(frozen=True, kw_only=True)
class PreferenceOutputs:
    """Both models on pairs of a chosen and a rejected answer."""

    pairs: int
    skipped: int
    beta: float
    base_accuracy: Measured | None
    tuned_accuracy: Measured
    accuracy_change: Measured | None
    reward_margin: Measured | None
    reward_accuracy: Measured | None


@dataclass(frozen=True, kw_only=True)
class ChoiceQuality:
    """One model on questions with choices."""

    accuracy: Measured
    accuracy_by_length: Measured


@dataclass(frozen=True, kw_only=True)
class ChoiceOutputs:
    """Both models on questions with choices."""

    questions: int
    skipped: int
    chance: float
    base: ChoiceQuality | None
    tuned: ChoiceQuality
    accuracy_change: Measured | None
    changed: Measured | None
    mcnemar_p: float | None
