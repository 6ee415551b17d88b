"""Similarities with each group of rows left out, against those of the rows that are left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from workers.analysis.moments import Frame, PairMoments
from workers.analysis.similarity import similarities
from workers.scratch import GroupStore
from workers.stages.common.intervals import MIN_GROUPS
from workers.stages.common.left_out import LeftOut

SITES, WIDTH, ROWS = 2, 6, 30


def rows(groups: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Of a pair of models, by group; [G, S, N, D] each."""
    generator = torch.Generator().manual_seed(seed)
    base, noise = torch.randn(2, groups, SITES, ROWS, WIDTH, generator=generator)
    return base, base + 0.3 * noise


def moments_of(frame: Frame, base: Tensor, tuned: Tensor) -> PairMoments:
    found = PairMoments.zeros(frame)
    for one, other in zip(base, tuned, strict=True):
        found.add(one, other)
    return found


def kept(folder: Path, groups: int, every: int = 1) -> tuple[PairMoments, GroupStore, Tensor, Tensor]:
    base, tuned = rows(groups)
    frame = Frame.of(base.transpose(0, 1).flatten(1, 2), tuned.transpose(0, 1).flatten(1, 2))
    store = GroupStore(folder, memory_bytes=1 << 20, every=every)
    for one, other in zip(base, tuned, strict=True):
        store.put(moments_of(frame, one[None, :, ::every], other[None, :, ::every]))
    return moments_of(frame, base, tuned), store, base, tuned


@pytest.mark.parametrize("every", [1, 3])
def test_each_groups_similarities_are_those_of_all_other_rows(tmp_path: Path, every: int) -> None:
    total, store, base, tuned = kept(tmp_path, 6, every)
    seen: list[float] = []
    found = LeftOut.of(total, store, seen.append)
    assert found.whole is (every == 1)
    assert seen == pytest.approx([number / 6 for number in range(1, 7)])
    for group, sites in enumerate(found.by_group):
        others = [number for number in range(6) if number != group]
        naive = similarities(moments_of(total.frame, base[others, :, ::every], tuned[others, :, ::every]))
        for site, expected in zip(sites, naive, strict=True):
            assert site.cka == pytest.approx(expected.cka, rel=1e-5)
            assert site.relative_l2 == pytest.approx(expected.relative_l2, rel=1e-5)
            assert site.procrustes == pytest.approx(expected.procrustes, abs=2e-3)
    assert found.of_layer(1) == [sites[1] for sites in found.by_group]


@pytest.mark.parametrize("groups", [1, MIN_GROUPS - 1])
def test_too_few_groups_leave_nothing(tmp_path: Path, groups: int) -> None:
    total, store, *_ = kept(tmp_path, groups)
    assert LeftOut.of(total, store, lambda _: None) == LeftOut([])


def test_without_a_store_there_is_nothing(tmp_path: Path) -> None:
    assert LeftOut.of(kept(tmp_path, 1)[0], None, lambda _: None).by_group == []


def test_a_group_without_which_too_few_rows_are_left_takes_all_intervals_away(tmp_path: Path) -> None:
    total, store, *_ = kept(tmp_path, MIN_GROUPS)
    small = PairMoments.zeros(total.frame)
    for group in store.each(total.frame):
        small.merge(group)
    small.n = ROWS + 19
    assert LeftOut.of(small, store, lambda _: None) == LeftOut([])
