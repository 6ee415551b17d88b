"""Rows that come site after site."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from workers import site_rows
from workers.scratch import ActivationStore
from workers.site_rows import SiteRows

WIDTH = 6


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_rows, "SHARD_ROWS", 4)


def rows(site: int, count: int = 10) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(site))


def stored(store: ActivationStore) -> Tensor:
    return torch.cat(list(store.shards()), 1)


@pytest.mark.parametrize("room", [100, 7])
def test_rows_of_all_sites_become_a_store(tmp_path: Path, room: int) -> None:
    sites, store = SiteRows(tmp_path / "sites", 2, WIDTH), ActivationStore(tmp_path / "store", max_rows=room)
    for site in range(2):
        for part in rows(site).split(3):
            sites.add(site, part)
    sites.into(store)
    expected = torch.stack([rows(0), rows(1)]).bfloat16()[:, :room]
    assert torch.equal(stored(store), expected)
    assert not (tmp_path / "sites").exists()


def test_rows_that_do_not_count_are_left_out(tmp_path: Path) -> None:
    sites, store = SiteRows(tmp_path / "sites", 1, WIDTH), ActivationStore(tmp_path / "store", max_rows=100)
    kept = torch.tensor([True, False] * 5)
    sites.add(0, rows(0))
    sites.into(store, kept)
    assert torch.equal(stored(store)[0], rows(0).bfloat16()[kept])


def test_a_site_may_begin_again(tmp_path: Path) -> None:
    sites, store = SiteRows(tmp_path / "sites", 1, WIDTH), ActivationStore(tmp_path / "store", max_rows=100)
    sites.add(0, rows(5))
    sites.restart(0)
    sites.add(0, rows(0))
    sites.into(store)
    assert torch.equal(stored(store)[0], rows(0).bfloat16())


def test_sites_with_different_numbers_of_rows_are_no_rows_of_the_same_tokens(tmp_path: Path) -> None:
    sites = SiteRows(tmp_path / "sites", 2, WIDTH)
    sites.add(0, rows(0))
    with pytest.raises(ValueError, match="different numbers of rows"):
        sites.into(ActivationStore(tmp_path / "store", max_rows=100))


def test_no_rows_at_all_are_none(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "store", max_rows=100)
    SiteRows(tmp_path / "sites", 2, WIDTH).into(store)
    assert store.rows == 0
