"""What the moments of one view say of every layer, with intervals' worth of it; the moments can go then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from workers.analysis.moments import PairMoments
from workers.analysis.similarity import SiteSimilarity, similarities
from workers.scratch import GroupStore
from workers.stages.common.left_out import LeftOut


@dataclass(frozen=True)
class ViewSimilarity:
    """One view's similarities. rows: how many. sites: by layer. left_out: the same without each group of texts."""

    rows: int
    sites: list[SiteSimilarity]
    left_out: LeftOut

    @staticmethod
    def of(moments: PairMoments, groups: GroupStore | None, on_progress: Callable[[float], None]) -> ViewSimilarity:
        """From all rows' moments and those of the groups, where they were kept."""
        return ViewSimilarity(moments.n, similarities(moments), LeftOut.of(moments, groups, on_progress))

    @staticmethod
    def joined(layers: Sequence[ViewSimilarity]) -> ViewSimilarity:
        """Of layers that were measured one after another; ValueError where they were not measured on the same rows."""
        if len({(one.rows, len(one.left_out.by_group), one.left_out.whole) for one in layers}) != 1:
            raise ValueError("the layers were measured on different rows")
        groups = zip(*(one.left_out.by_group for one in layers), strict=True)
        by_group = [list(chain.from_iterable(sites)) for sites in groups]
        left_out = LeftOut(by_group, layers[0].left_out.whole)
        return ViewSimilarity(layers[0].rows, [site for one in layers for site in one.sites], left_out)
