"""The crosscoder comparison of stage `sae`: one crosscoder a layer on both models, and one on the base model twice."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from workers.analysis.crosscoder import crosscoder_fit, side_by_side, specific_latents
from workers.analysis.sae import Normalisation, SaeConfig, SaeStack
from workers.results.autoencoders import Crosscoder, SpecificCounts
from workers.scratch import ActivationStore
from workers.stages.common.progress import OnProgress
from workers.stages.common.site_layout import SiteLayout
from workers.stages.sae.latents import ENCODED_ROWS
from workers.stages.sae.runs import Outcome, Plan, Runs

CROSSCODERS = "training crosscoders"
"""The span of their training in the progress of the stage."""


class Crosscoding:
    """Crosscoders at every layer: first those of the pair, then, of the base model and itself, what chance gives.

    The two halves of a start are unrelated, so that the floor says how far training brings them together.

    Args:
        scales: of the stored sites, base ones before tuned ones, [2 (L + 1)].
        sample: first rows of all stored sites, [2 (L + 1), N, D].
    """

    def __init__(self, scales: Tensor, sample: Tensor, config: SaeConfig, seed: int) -> None:
        self._layout = SiteLayout.of_pair(len(scales))
        self._scales = scales
        self._config = config
        rows = torch.stack(list(self.rows_of(sample)))
        generator = torch.Generator().manual_seed(seed)
        row_k = config.k if config.architecture == "topk" else 0
        self.stack = SaeStack.initial(Normalisation.of(rows), config.latents, generator, row_k)

    def rows_of(self, states: Tensor) -> Iterator[Tensor]:
        """Rows of the stored sites [2 (L + 1), B, D] side by side, for every crosscoder; as many times [B, 2 D]."""
        for site in range(self._layout.sites):
            yield self._side_by_side(states, site)

    def _side_by_side(self, states: Tensor, site: int) -> Tensor:
        base = self._layout.base(self._layout.layer(site))
        other = base if self._layout.of_tuned(site) else self._layout.tuned(self._layout.layer(site))
        return side_by_side(states[base], states[other], (self._scales[base], self._scales[other]))

    def train(self, runs: Runs) -> Outcome:
        """Trains them all."""
        return runs.run(self.stack, self._config, Plan(what=CROSSCODERS, rows_of=self.rows_of, order=2))

    def measured(self, heldout: ActivationStore, outcome: Outcome, on_progress: OnProgress) -> list[Crosscoder]:
        """By layer, on rows that they were not trained on."""
        found = []
        for layer in range(self._layout.layers):
            of_pair, of_base = self._layout.base(layer), self._layout.tuned(layer)
            pair = crosscoder_fit(self.stack, of_pair, self._inlier_rows(heldout, of_pair))
            again = crosscoder_fit(self.stack, of_base, self._inlier_rows(heldout, of_base))
            counts, floor = (
                SpecificCounts(**{name: int(some.sum()) for name, some in specific_latents(fit)._asdict().items()})
                for fit in (pair, again)
            )
            found.append(
                Crosscoder(
                    base_fvu=pair.base_fvu,
                    tuned_fvu=pair.tuned_fvu,
                    l0=pair.l0,
                    dead_fraction=float(outcome.dead_fraction[layer]),
                    pair=counts,
                    floor=floor,
                    tuned_only_excess=counts.tuned_only_confirmed - floor.tuned_only_confirmed,
                    tuned_only_error=math.sqrt(counts.tuned_only_confirmed + floor.tuned_only_confirmed),
                    base_only_excess=counts.base_only_confirmed - floor.base_only_confirmed,
                    base_only_error=math.sqrt(counts.base_only_confirmed + floor.base_only_confirmed),
                )
            )
            on_progress((layer + 1) / self._layout.layers)
        return found

    def _inlier_rows(self, store: ActivationStore, site: int) -> Iterator[Tensor]:
        for shard in store.shards():
            for states in shard.split(ENCODED_ROWS, dim=1):
                rows = self._side_by_side(states, site)
                yield rows[self.stack.inliers(site, rows)]
