"""Similarity of the two models, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from layerdrift.contract.names import ZoneName
from layerdrift.contract.request import NoiseFloorName
from workers.results.measured import Measured


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Similarity measures for one view of one layer."""

    cosine: Measured
    cosine_centred: Measured
    relative_l2: Measured
    relative_l2_centred: Measured
    cka: Measured
    cka_standardized: Measured
    procrustes: Measured
    rsa: Measured | None = None
    knn_jaccard: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class AllTokens:
    """The token view including first tokens and outliers, which all other numbers exclude."""

    drift: float
    relative_l2: float | None


@dataclass(frozen=True, kw_only=True)
class CrossLayerCka:
    """Debiased CKA between every layer of the base (rows) and every layer of the tuned model (columns)."""

    values: list[list[float | None]]
    rows: int


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """A pair of models that differ only by noise, measured like the actual pair."""

    name: NoiseFloorName
    description: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Zone:
    """A range of consecutive layers at one level of drift."""

    name: ZoneName
    first: int
    last: int
    level: float
    support: float | None = None
