"""Whether the change affects the outputs, and what to freeze."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerdrift.contract.names import StrategyName
from workers.results.measured import Measured


@dataclass(frozen=True, kw_only=True)
class LayerGraft:
    """Effect of grafting parts of the base model into the tuned model; see `causal.graft`."""

    prefix: Measured
    prefix_cost: Measured
    block: Measured


@dataclass(frozen=True, kw_only=True)
class GraftInfo:
    """How the grafts are evaluated."""

    measure: Literal["accuracy", "perplexity", "kl", "state_change"]
    ungrafted: float
    examples: int


@dataclass(frozen=True, kw_only=True)
class SpliceInfo:
    """How the autoencoders were evaluated by the models' outputs."""

    loss: Literal["cross_entropy", "kl"]
    examples: int


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """Fine-tunes with the embeddings and the first k blocks frozen."""

    freeze_first: int
    accuracy: float
    by_seed: list[float]
    loss_points: float
    loss_bound_points: float
    validated: bool
    step_seconds: float
    training_bytes: int
    cached: bool


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A rule for what to freeze, and the accuracy it loses compared with the best depth of the sweep."""

    name: StrategyName
    frozen_blocks: list[int]
    accuracy: float
    regret_points: float


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Cost of freezing, measured by retraining."""

    epsilon_points: float
    seeds: list[int]
    examples: int
    points: list[SweepPoint]
    strategies: list[Strategy]


@dataclass(frozen=True, kw_only=True)
class Causal:
    """Whether the change affects the outputs."""

    graft: GraftInfo | None = None
    splice: SpliceInfo | None = None
    sweep: Sweep | None = None


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to freeze in the next fine-tune."""

    freeze_first: int
    basis: Literal["predicted", "validated", "none"]
    evidence: str
