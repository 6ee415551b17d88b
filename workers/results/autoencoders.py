"""Sparse autoencoders and their latents."""

from __future__ import annotations

from dataclasses import dataclass, field

from layerdrift.contract.names import Fate, RoleName, SaeRunName
from workers.results.measured import Measured


@dataclass(frozen=True, kw_only=True)
class Turnover:
    """What happened to the latents of a dictionary during continued training; see `docs/numbers.md`."""

    retained: int
    shifted: int
    lost: int
    new: int


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The base model's autoencoder after continued training on the tuned model's activations."""

    tuned: Turnover
    floor: Turnover
    new_excess: int | None = None
    new_error: float | None = None
    lost_excess: int | None = None
    lost_error: float | None = None
    shifted_excess: int | None = None
    shifted_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Match:
    """Independently trained autoencoders, their live latents matched one to one."""

    matched_share: float
    floor_share: float
    mean_cosine: float
    floor_mean_cosine: float
    unmatched_excess: float | None = None
    unmatched_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class SpecificCounts:
    """Live latents of a crosscoder by relative decoder norm: 0 base only, 1 tuned only."""

    tuned_only: int
    tuned_only_confirmed: int
    base_only: int
    base_only_confirmed: int
    tuned_more: int
    shared: int
    base_more: int


@dataclass(frozen=True, kw_only=True)
class Crosscoder:
    """A latent space shared by both models at one layer, with a decoder for each (Minder et al. 2025)."""

    base_fvu: float
    tuned_fvu: float
    l0: float
    dead_fraction: float
    pair: SpecificCounts
    floor: SpecificCounts
    tuned_only_excess: int
    tuned_only_error: float | None = None
    base_only_excess: int
    base_only_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class LatentAblation:
    """The tuned model with the new and shifted latents of a layer ablated."""

    latents: int
    cost: Measured
    draws: int = 0
    p: float | None = None


@dataclass(frozen=True, kw_only=True)
class SaeRunPoint:
    """Training curve at the end of a span of steps."""

    step: int
    unexplained: list[float]


@dataclass(frozen=True, kw_only=True)
class SaeRun:
    """One run that trains several autoencoders in parallel."""

    name: SaeRunName
    steps: int
    planned_steps: int
    batch: int
    learning_rate: float
    autoencoders: list[str]
    curve: list[SaeRunPoint]


@dataclass(frozen=True, kw_only=True)
class LatentExample:
    """A token that activates a latent, with its context."""

    before: str
    token: str
    after: str
    activation: float
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelAssociation:
    """A label associated with a latent."""

    label: str
    share: float
    expected: float


@dataclass(frozen=True, kw_only=True)
class ProbeDirection:
    """The class closest to a latent's direction, by a linear regression in the tuned model's layer."""

    label: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class RoleShare:
    """How much of a latent's activation is on tokens of a role, and which share of all tokens these are."""

    share: float
    expected: float


@dataclass(frozen=True, kw_only=True)
class ChangedLatent:
    """A new, shifted or lost latent of a layer with significantly more of them than its noise floor."""

    layer: int
    index: int
    fate: Fate
    cosine: float
    base_rate: float
    tuned_rate: float
    base: list[LatentExample]
    tuned: list[LatentExample]
    label_association: LabelAssociation | None = None
    probe: ProbeDirection | None = None
    promotes: list[str] = field(default_factory=list)
    roles: dict[RoleName, RoleShare] = field(default_factory=dict)
