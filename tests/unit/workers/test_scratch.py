from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers.analysis.moments import SUMS, Frame, PairMoments, symmetric
from workers.analysis.similarity import drift_of, similarities
from workers.analysis.streams import Rows
from workers.scratch import SHARD_ROWS, ActivationStore, GroupStore


def numbered(count: int, start: int = 0) -> torch.Tensor:
    """Rows that bfloat16 holds exactly and that name themselves: [2, count, 2]."""
    index = torch.arange(start, start + count)
    row = torch.stack([index // 128, index % 128], dim=1).float()
    return torch.stack([row, -row])


def names(rows: torch.Tensor) -> list[int]:
    return (rows[0, :, 0].float() * 128 + rows[0, :, 1].float()).long().tolist()


def test_rows_come_back_in_order_and_no_more_than_allowed(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s", max_rows=10_000)
    for start in range(0, 15_000, 1_500):
        store.add(numbered(1_500, start))
    assert store.full
    assert [name for shard in store.shards() for name in names(shard)] == list(range(10_000))
    on_disk = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert on_disk < 10_000 * 2 * 2 * 2 * 1.01 + 3 * 1024


def test_an_epoch_of_batches_has_every_row_once(tmp_path: Path) -> None:
    count = 3 * SHARD_ROWS
    store = ActivationStore(tmp_path / "s", max_rows=count)
    for start in range(0, count, SHARD_ROWS):
        store.add(numbered(SHARD_ROWS, start))
    found = list(store.training_batches(count // 256, 256, torch.Generator().manual_seed(0)))
    seen = [name for batch in found for name in names(batch)]
    assert sorted(seen) == list(range(count))
    assert seen != sorted(seen)
    assert all(torch.equal(batch[0], -batch[1]) for batch in found)


def test_batches_that_were_made_before_are_passed_over(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s", max_rows=3 * SHARD_ROWS)
    store.add(numbered(3 * SHARD_ROWS))
    whole, rest = (
        [names(batch) for batch in store.training_batches(90, 256, torch.Generator().manual_seed(0), skipped)]
        for skipped in (0, 70)
    )
    assert rest == whole[70:]


def test_few_rows_are_repeated_for_as_many_steps_as_asked(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s", max_rows=100)
    store.add(numbered(100))
    found = list(store.training_batches(9, 64, torch.Generator().manual_seed(0)))
    assert [batch.shape for batch in found] == [(2, 64, 2)] * 9
    counts = torch.tensor([name for batch in found for name in names(batch)]).bincount(minlength=100)
    assert int(counts.min()) >= 4


def test_the_same_generator_gives_the_same_batches(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s", max_rows=1000)
    store.add(numbered(1000))
    runs = [
        [names(batch) for batch in store.training_batches(5, 128, torch.Generator().manual_seed(seed))]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_fewer_rows_than_a_batch_are_refused(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "s", max_rows=1000)
    store.add(numbered(10))
    with pytest.raises(ValueError, match="10 rows do not fill a batch of 64"):
        next(store.training_batches(1, 64, torch.Generator()))


@pytest.mark.parametrize(("memory_bytes", "files"), [(0, 2), (2 * 3 * 40 * 5 * 4, 1), (10**6, 0)])
def test_groups_come_back_as_moments_whichever_way_they_were_kept(
    tmp_path: Path, memory_bytes: int, files: int
) -> None:
    rows = torch.randn(2, 3, 40, 5, generator=torch.Generator().manual_seed(0))
    frame = Frame.of(*rows)
    moments = PairMoments.zeros(frame)
    moments.add(*rows)
    store = GroupStore(tmp_path / "groups", memory_bytes)
    store.put(Rows(*rows))
    store.put(moments)
    for found in store.each(frame):
        assert found.n == 40
        for name in SUMS:
            one, other = getattr(found, name), getattr(moments, name)
            if name in ("xx", "yy"):
                one, other = symmetric(one), symmetric(other)
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    on_disk = [path.stat().st_size for path in (tmp_path / "groups").glob("*")]
    assert len(on_disk) == files
    assert sum(on_disk) <= files * (GroupStore.bytes_for(3, 5, 40) + 8192)


def test_what_groups_lose_on_disk_is_far_below_what_nearly_equal_models_differ_by(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base, noise = torch.randn(2, 1, 400, 6, generator=generator)
    tuned = base + 1e-4 * noise
    frame = Frame.of(base, tuned)
    total, group = PairMoments.zeros(frame), PairMoments.zeros(frame)
    total.add(base, tuned)
    group.add(base[:, :40], tuned[:, :40])
    store = GroupStore(tmp_path / "groups", memory_bytes=0)
    store.put(group)
    expected, found = (drift_of(similarities(total.without(one))[0]) for one in (group, next(store.each(frame))))
    assert 1e-10 < expected < 1e-7
    assert found == pytest.approx(expected, rel=1e-5)
