"""Views of one layer: rows that are held give what sums of rows give."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from workers.analysis.moments import NotFinite
from workers.analysis.streams import Rows
from workers.models.texts import Batch
from workers.stages.common.moment_accumulator import GroupPlan
from workers.stages.extract.view_rows import ViewRows, _HeldRows, _ManyRows

WIDTH = 300


def group(number: int, count: int = 7) -> Rows:
    generator = torch.Generator().manual_seed(number)
    base = torch.randn(1, count, WIDTH, generator=generator) * torch.linspace(0.1, 3, WIDTH) + 1
    return Rows(base, base + 0.3 * torch.randn(1, count, WIDTH, generator=generator))


def test_held_rows_give_what_sums_of_them_give_with_and_without_each_group(tmp_path: Path) -> None:
    held, many, others = _HeldRows("mean", grouped=True), _ManyRows("mean", tmp_path, 1), group(99)
    for number in range(8):
        held.add(number, group(number))
        many.add(number, group(number))
    one, judge = held.found(others), many.found(others)
    assert one.similarity.rows == judge.similarity.rows == 56
    assert one.with_others is not None
    assert judge.with_others is not None
    pairs = [(one.similarity.sites[0], judge.similarity.sites[0])]
    pairs += zip(*(found.similarity.left_out.of_layer(0) for found in (one, judge)), strict=True)
    for site, expected in pairs:
        assert astuple(site)[:-1] == pytest.approx(
            astuple(expected)[:-1], rel=1e-8, abs=1e-10
        )  # of Procrustes the second order is in float32
    assert one.with_others.cka == pytest.approx(judge.with_others.cka, rel=1e-9)
    assert one.with_others.relative_l2 == pytest.approx(judge.with_others.relative_l2, rel=1e-9)
    torch.testing.assert_close(one.frame.base, judge.frame.base)


def test_rows_that_do_not_vary_have_no_cka_of_either_kind() -> None:
    held = _HeldRows("mean", grouped=False)
    held.add(0, Rows(torch.ones(1, 30, WIDTH), torch.ones(1, 30, WIDTH)))
    (site,) = held.found(None).similarity.sites
    assert (site.cka, site.cka_standardized, site.relative_l2) == (None, None, 0.0)


@pytest.mark.parametrize(("side", "number"), [("base", 0), ("tuned", 1)])
def test_held_rows_that_are_not_finite_name_the_model(side: str, number: int) -> None:
    rows = group(0)
    rows[number][0, 3, 5] = torch.nan
    with pytest.raises(NotFinite) as raised:
        _HeldRows("mean", grouped=False).add(0, rows)
    assert raised.value.side == side


def test_the_number_of_rows_decides_how_a_view_is_measured(tmp_path: Path) -> None:
    views = ViewRows({"token": 112_000, "cls": 111_000, "mean": 20}, WIDTH, False, tmp_path, GroupPlan())
    kinds = {view: type(rows) for view, rows in views._views.items()}
    assert kinds == {"token": _ManyRows, "cls": _HeldRows, "mean": _HeldRows}


def test_a_batch_becomes_rows_of_all_views(tmp_path: Path) -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    real = torch.tensor([[False, True, True], [False, True, False]])
    batch = Batch(ids, ids, real, [0, 1])
    base = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    rows = ViewRows({"token": 3}, WIDTH, False, tmp_path).add(0, batch, base, base + 1)
    torch.testing.assert_close(rows["token"].base[0], base[real])
    torch.testing.assert_close(rows["cls"].tuned[0], base[:, 0] + 1)
    torch.testing.assert_close(rows["mean"].base[0], torch.stack([base[0, 1:].mean(0), base[1, 1]]))
