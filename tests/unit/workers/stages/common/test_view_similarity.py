"""Similarities of a view, layer by layer or at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workers.analysis.moments import Frame, PairMoments
from workers.scratch import GroupStore
from workers.stages.common.left_out import LeftOut
from workers.stages.common.view_similarity import ViewSimilarity


def measured(layers: slice, folder: Path) -> ViewSimilarity:
    """Of some of four layers of a pair, 6 groups of 20 rows each."""
    base, noise = torch.randn(2, 4, 120, 8, generator=torch.Generator().manual_seed(0))
    base, tuned = base[layers], (base + 0.3 * noise)[layers]
    frame = Frame.of(base, tuned)
    total, store = PairMoments.zeros(frame), GroupStore(folder, 1 << 20)
    total.add(base, tuned)
    for start in range(0, 120, 20):
        part = PairMoments.zeros(frame)
        part.add(base[:, start : start + 20], tuned[:, start : start + 20])
        store.put(part)
    return ViewSimilarity.of(total, store, lambda _: None)


def test_layers_one_after_another_are_what_all_are_at_once(tmp_path: Path) -> None:
    whole = measured(slice(None), tmp_path)
    joined = ViewSimilarity.joined([measured(slice(layer, layer + 1), tmp_path) for layer in range(4)])
    assert (joined.rows, len(joined.sites), len(joined.left_out.by_group)) == (120, 4, 6)
    for layer in range(4):
        assert joined.sites[layer].cka == pytest.approx(whole.sites[layer].cka)
        left = [[site.cka for site in one.left_out.of_layer(layer)] for one in (joined, whole)]
        assert left[0] == pytest.approx(left[1])


def test_layers_of_different_rows_are_not_joined(tmp_path: Path) -> None:
    one = measured(slice(0, 1), tmp_path)
    for other in (replace(one, rows=100), replace(one, left_out=LeftOut([]))):
        with pytest.raises(ValueError, match="measured on different rows"):
            ViewSimilarity.joined([one, other])
