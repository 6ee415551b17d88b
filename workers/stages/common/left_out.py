"""Similarities with each group of texts left out, which intervals are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workers.analysis.moments import PairMoments
from workers.analysis.similarity import MIN_ROWS, SiteSimilarity, nuclear_norms, similarities
from workers.scratch import GroupStore
from workers.stages.common.intervals import MIN_GROUPS


@dataclass(frozen=True)
class LeftOut:
    """One view's similarities with each group left out: by group, then by layer; empty without groups.

    whole: of all rows. Else of a sample of them, whose spread stands for that of all, and is a little larger.
    """

    by_group: list[list[SiteSimilarity]]
    whole: bool = True

    @staticmethod
    def of(total: PairMoments, store: GroupStore | None, on_progress: Callable[[float], None]) -> LeftOut:
        """Empty where groups were not kept, or are too few or small."""
        if store is None or store.groups < MIN_GROUPS:
            return LeftOut([])
        if store.every > 1:
            total = PairMoments.zeros(total.frame)
            for group in store.each(total.frame):
                total.merge(group)
        found, whole = [], nuclear_norms(total)
        for number, group in enumerate(store.each(total.frame), start=1):
            if total.n - group.n < MIN_ROWS:
                return LeftOut([])
            found.append(similarities(total.without(group), whole))
            on_progress(number / store.groups)
        return LeftOut(found, whole=store.every == 1)

    def of_layer(self, layer: int) -> list[SiteSimilarity]:
        """By group."""
        return [sites[layer] for sites in self.by_group]
