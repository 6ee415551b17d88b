"""What stage `sae` leaves: the trained autoencoders and what they say of every layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.analysis.sae import SaeStack
from workers.results.autoencoders import ChangedLatent, Crosscoder, Match, SaeRun, WarmStart
from workers.results.warnings import ReportWarning
from workers.stages.common.site_layout import SiteLayout


@dataclass(frozen=True)
class Quality:
    """Of one autoencoder on held-out rows.

    fvu: fraction of variance unexplained, >= 0. l0: active latents of a row, mean. dead_fraction: share of latents that
    did not fire at the end of the training. density: histogram of firing rates, by DENSITY_EDGES.
    """

    fvu: float
    l0: float
    dead_fraction: float
    density: list[int]


@dataclass(frozen=True)
class LayerComparison:
    """What the two autoencoders of one layer say of the pair.

    transfer_fvu: of the base model's autoencoder, refitted, on the tuned model's rows; transfer_excess: less its own.
    withheld: why counts are not told; None where they are.
    """

    base: Quality
    tuned: Quality
    transfer_fvu: float
    transfer_excess: float
    withheld: str | None
    warm_start: WarmStart | None
    match: Match | None


@dataclass(frozen=True)
class Dictionaries:
    """The trained autoencoders, for what is asked of them afterwards.

    layers: the models' layers that have autoencoders, in order; what is by layer below is by their places here.
    stack: as `layout` has it. means: [2 S, D] of the held-out inliers, of S layers.
    warmed: the ones that went on from the base model's, at the same sites; None without a warm start.
    firing: by layer, of those [F, 2]: logarithms of how often latents fire and of how strongly.
    changed, others: by layer, the tuned model's latents that are new or shifted, of fates that are beyond floor and
    chance, and all others alive.
    """

    layers: list[int]
    stack: SaeStack
    means: Tensor
    warmed: SaeStack | None
    changed: list[list[int]]
    others: list[list[int]]
    firing: list[Tensor]

    @property
    def layout(self) -> SiteLayout:
        """Of `means`, `warmed` and the first two parts of `stack`."""
        return SiteLayout.of_pair(len(self.means))

    def place(self, layer: int) -> int:
        """Of a model's layer among those that have autoencoders; ValueError where it has none."""
        return self.layers.index(layer)


@dataclass(frozen=True)
class SaeResults:
    """All of it, by the layers of the models that have autoencoders.

    controls: of a model that was never trained; None: not asked for.
    latents: the most changed ones of all layers. runs: how the trainings went.
    """

    layers: list[int]
    comparisons: list[LayerComparison]
    controls: list[Quality] | None
    crosscoders: list[Crosscoder] | None
    latents: list[ChangedLatent]
    dictionaries: Dictionaries
    runs: list[SaeRun]
    warnings: list[ReportWarning]
