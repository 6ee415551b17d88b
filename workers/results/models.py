"""The two checkpoints, and how far their weights moved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One of the two checkpoints."""

    uri: str
    fingerprint: str
    architecture: str
    parameters: int
    blocks: int
    hidden_size: int


@dataclass(frozen=True, kw_only=True)
class WeightDrift:
    """How far the weights of one part of a layer moved."""

    relative_frobenius: float | None
    effective_rank: float | None
    top8_share: float | None
    top16_share: float | None
    rounding_share: float | None = None
