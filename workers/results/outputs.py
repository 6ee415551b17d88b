"""Outputs of the models, and probes of the labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from workers.results.answers import AnswerOutputs, ChoiceOutputs, PreferenceOutputs
from workers.results.measured import Measured


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """Quality of one model's outputs on the analysed texts. Null: not available for its head or the data."""

    accuracy: Measured | None = None
    mcc: Measured | None = None
    perplexity: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Outputs of both models on the analysed texts; null for a model without a head of this kind."""

    kind: Literal["classifier", "causal_lm", "masked_lm"]
    examples: int
    labels: list[str] = field(default_factory=list)
    labelled: int | None = None
    base: ModelOutputs | None = None
    tuned: ModelOutputs | None = None
    majority_accuracy: float | None = None
    majority_change: Measured | None = None
    accuracy_change: Measured | None = None
    mcnemar_p: float | None = None
    perplexity_ratio: Measured | None = None
    disagreement: Measured | None = None
    js_divergence: Measured | None = None
    divergent: list[DivergentText] | None = None
    answers: AnswerOutputs | None = None
    preferences: PreferenceOutputs | None = None
    choices: ChoiceOutputs | None = None


@dataclass(frozen=True, kw_only=True)
class LabelProbability:
    """A class and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class DivergentText:
    """A text on which the models' answers differ most; base and tuned: their likeliest classes."""

    text: int
    shown: str
    divergence: float
    base: LabelProbability | None
    tuned: LabelProbability | None
    label: str | None


@dataclass(frozen=True, kw_only=True)
class LayerProbe:
    """Accuracy of a linear probe of the labels at one layer of both models, on held-out texts."""

    base: Measured
    tuned: Measured
    base_control: float
    tuned_control: float


@dataclass(frozen=True, kw_only=True)
class ProbeInfo:
    """Data the probes were fitted to."""

    examples: int
    classes: int
    folds: int
    majority_accuracy: float
