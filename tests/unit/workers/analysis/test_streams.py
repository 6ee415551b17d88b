from __future__ import annotations

import copy

import pytest
import torch

from workers.analysis.moments import SUMS, Frame, PairMoments
from workers.analysis.streams import Group, Rows, RowSample, StreamedMoments


def pair(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, rows, 5, generator=generator), torch.randn(2, rows, 5, generator=generator)


@pytest.mark.parametrize("group_of", [100, 5])
@pytest.mark.parametrize(("frame_rows", "frame_bytes"), [(70, 10**9), (10**9, 3 * 2 * 30 * 5 * 4 * 2), (10**9, 10**9)])
def test_held_rows_are_counted_once_whatever_settles_the_frame(
    frame_rows: int, frame_bytes: int, group_of: int
) -> None:
    """Groups of 120 rows of width 5 go to the sink as moments, groups of 5 as rows."""
    base, tuned = pair(300)
    groups: list[Group] = []
    stream = StreamedMoments(frame_rows, frame_bytes, lambda group: groups.append(copy.deepcopy(group)))
    step = 30 if group_of == 100 else 5
    for start in range(0, 300, step):
        stream.add(start // group_of, base[:, start : start + step], tuned[:, start : start + step])
    found = stream.finished()
    counts = [one.n for one in groups]
    assert counts == ([120, 90, 90] if group_of == 100 else [5] * 60)
    assert {type(group) for group in groups} == {PairMoments if group_of == 100 else Rows}
    settled_after = min(300, -(-frame_rows // step) * step) if frame_bytes == 10**9 else 90
    expected = PairMoments.zeros(Frame.of(base[:, :settled_after], tuned[:, :settled_after]))
    expected.add(base, tuned)
    assert found.n == 300
    torch.testing.assert_close(found.frame.base, expected.frame.base)
    for name in SUMS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    merged = PairMoments.zeros(found.frame)
    for group in groups:
        if isinstance(group, PairMoments):
            merged.merge(group)
        else:
            merged.add(*group)
    torch.testing.assert_close(merged.xy, found.xy)


def test_no_rows_have_no_moments() -> None:
    with pytest.raises(ValueError, match="no rows received"):
        StreamedMoments(10, 10, lambda _: None).finished()


def test_a_sample_is_uniform_over_all_rows_and_keeps_pairs_together() -> None:
    counts = torch.zeros(60)
    for seed in range(400):
        sample = RowSample(12, torch.Generator().manual_seed(seed))
        for start in range(0, 60, 20):
            index = torch.arange(start, start + 20).float()
            sample.add(index[None, :, None], -index[None, :, None])
        base, tuned = sample.rows()
        assert torch.equal(base, -tuned)
        counts[base.flatten().long()] += 1
    assert counts.sum() == 400 * 12
    assert bool(((counts - 80).abs() < 5 * 8).all())  # 5 standard errors of a count with mean 80


def test_fewer_rows_than_the_sample_are_all_in_it() -> None:
    sample = RowSample(12, torch.Generator())
    sample.add(*pair(7))
    assert sample.rows()[0].shape == (2, 7, 5)


@pytest.mark.parametrize("step", [7, 30, 64])
def test_a_part_of_a_group_s_rows_is_kept_evenly_and_the_total_is_of_all(step: int) -> None:
    base, tuned = pair(300)
    groups: list[Group] = []
    stream = StreamedMoments(70, 10**9, lambda group: groups.append(copy.deepcopy(group)), every=4)
    for start in range(0, 300, step):
        stream.add(start // 150, base[:, start : start + step], tuned[:, start : start + step])
    found = stream.finished()
    assert found.n == 300
    kept = sum(one.n for one in groups)
    assert kept == 75
    expected = PairMoments.zeros(found.frame)
    expected.add(base, tuned)
    torch.testing.assert_close(found.xy, expected.xy)
    sample = PairMoments.zeros(found.frame)
    sample.add(base[:, ::4].contiguous(), tuned[:, ::4].contiguous())
    merged = PairMoments.zeros(found.frame)
    for group in groups:
        if isinstance(group, PairMoments):
            merged.merge(group)
        else:
            merged.add(*group)
    torch.testing.assert_close(merged.xy, sample.xy)
