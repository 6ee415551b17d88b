from __future__ import annotations

import pytest
import torch

from workers.analysis.moments import Centre, PairMoments
from workers.analysis.streams import RowSample, StreamedMoments


def pair(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, rows, 5, generator=generator), torch.randn(2, rows, 5, generator=generator)


@pytest.mark.parametrize(
    ("centre_rows", "centre_bytes"), [(70, 10**9), (10**9, 3 * 2 * 30 * 5 * 4 * 2), (10**9, 10**9)]
)
def test_held_rows_are_counted_once_whatever_settles_the_centre(centre_rows: int, centre_bytes: int) -> None:
    base, tuned = pair(300)
    groups: list[PairMoments] = []
    stream = StreamedMoments(centre_rows, centre_bytes, groups.append)
    for start in range(0, 300, 30):
        stream.add(start // 100, base[:, start : start + 30], tuned[:, start : start + 30])
    found = stream.finished()
    assert [group.n for group in groups] == [120, 90, 90]
    merged = groups[0].merge(groups[1]).merge(groups[2])
    assert all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(getattr(found, name)))
        for name, value in merged.sums().items()
    )
    settled_after = 90 if centre_rows == 70 or centre_bytes < 10**9 else 300
    expected = PairMoments.zeros(Centre.of(base[:, :settled_after], tuned[:, :settled_after]))
    expected.add(base, tuned)
    assert found.n == 300
    torch.testing.assert_close(found.centre.base, expected.centre.base)
    torch.testing.assert_close(found.xy, expected.xy)
    torch.testing.assert_close(found.cosine_centred, expected.cosine_centred)


def test_no_rows_have_no_moments() -> None:
    with pytest.raises(ValueError, match="no rows came"):
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
