"""Similarities of rows: sums of their moments, with and without each group, are the judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import pytest
import torch

from workers.analysis import row_similarity
from workers.analysis.moments import Frame, PairMoments
from workers.analysis.row_similarity import cka_of_rows, similarities_of_rows
from workers.analysis.similarity import MIN_ROWS, SiteSimilarity, nuclear_norms, similarities
from workers.analysis.streams import Rows

WIDTH = 60


def group(number: int, count: int, width: int = WIDTH, noise: float = 0.3) -> Rows:
    generator = torch.Generator().manual_seed(number)
    base = torch.randn(1, count, width, generator=generator) * torch.linspace(0.1, 3, width) + 1
    return Rows(base, base + noise * torch.randn(1, count, width, generator=generator))


def moments(rows: Rows, frame: Frame) -> PairMoments:
    found = PairMoments.zeros(frame)
    found.add(*rows)
    return found


def by_moments(groups: list[Rows], frame: Frame) -> list[SiteSimilarity]:
    """Of all rows, then without each group."""
    parts = [moments(rows, frame) for rows in groups]
    total = moments(Rows.joined(groups), frame)
    near = nuclear_norms(total)
    return [similarities(total)[0], *(similarities(total.without(part), near)[0] for part in parts)]


def assert_close(one: SiteSimilarity, other: SiteSimilarity) -> None:
    assert one.undefined == other.undefined
    assert astuple(one)[:-1] == pytest.approx(astuple(other)[:-1], rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("tile", [17, WIDTH], ids=["many tiles", "one tile"])
@pytest.mark.parametrize("noise", [1e-4, 0.3, 30.0])
@pytest.mark.parametrize(
    "counts",
    [[6, 7, 5, 6, 8], [30, 40, 35, 30, 50], [200, 100, 70, 90, 80]],
    ids=["fewer rows than features", "groups of fewer", "groups of more"],
)
def test_rows_give_what_their_moments_give_with_and_without_each_group(
    counts: list[int], noise: float, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_similarity, "TILE", tile)
    groups = [group(number, count, noise=noise) for number, count in enumerate(counts)]
    frame = Frame.of(*Rows.joined(groups[:2]))
    found = similarities_of_rows(groups, frame)
    for one, judge in zip([found.whole, *found.left_out], by_moments(groups, frame), strict=True):
        assert_close(one, judge)


def test_without_intervals_the_groups_do_not_matter() -> None:
    groups = [group(number, 30) for number in range(5)]
    frame = Frame.of(*Rows.joined(groups))
    found = similarities_of_rows(groups, frame, intervals=False)
    assert found.left_out == []
    assert_close(found.whole, similarities_of_rows(groups, frame).whole)


def test_groups_without_which_too_few_rows_are_left_are_not_left_out() -> None:
    groups = [group(0, MIN_ROWS), group(1, MIN_ROWS - 1)]
    assert similarities_of_rows(groups, Frame.of(*Rows.joined(groups))).left_out == []


def test_too_few_rows_give_no_number_at_all() -> None:
    rows = group(0, MIN_ROWS - 1)
    for site in (similarities_of_rows([rows], Frame.of(*rows)).whole, cka_of_rows(rows)):
        assert set(astuple(site)[:-1]) == {None}
        assert "19 rows" in (site.undefined or "")


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rows_that_do_not_vary_have_no_cka(value: float) -> None:
    rows = Rows(torch.full((1, 30, WIDTH), value), torch.full((1, 30, WIDTH), value))
    site = similarities_of_rows([rows], Frame.of(*rows)).whole
    assert (site.cka, site.cka_standardized, site.procrustes) == (None, None, None)
    assert site.undefined is not None


def test_equal_rows_are_equal_to_the_last_bit_also_without_a_group_that_differs() -> None:
    groups = [group(number, 30) for number in range(5)]
    same = [groups[0], *(Rows(rows.base, rows.base.clone()) for rows in groups[1:])]
    found = similarities_of_rows(same, Frame.of(*Rows.joined(same)))
    assert found.whole.cka is not None
    assert found.whole.cka < 1
    assert astuple(found.left_out[0])[:-1] == (1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("count", [100, 700], ids=["fewer rows than features", "more"])
def test_equal_rows_and_equal_others_are_equal_to_the_last_bit(count: int) -> None:
    """In a dozen draws, of some of which the products of one model and of both round differently."""
    for number in range(12):
        rows, others = (
            Rows(given.base, given.base.clone()) for given in (group(number, count, 130), group(99 + number, 9, 130))
        )
        found = similarities_of_rows([rows], Frame.of(*rows), others=others).with_others
        assert found is not None
        assert (found.cosine, found.relative_l2, found.cka) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("count", [40, 200], ids=["fewer rows than features", "more"])
def test_others_count_in_the_cka_of_all_rows_alone(count: int) -> None:
    rows, others = group(0, count), group(99, 9)
    frame = Frame.of(*rows)
    found = similarities_of_rows([rows], frame, others=others)
    judge = by_moments([Rows.joined([rows, others])], Frame.of(*Rows.joined([rows, others])))[0]
    assert found.with_others is not None
    assert found.with_others.cka == pytest.approx(judge.cka, rel=1e-9)
    assert found.with_others.relative_l2 == pytest.approx(judge.relative_l2, rel=1e-9)
    assert_close(found.whole, similarities_of_rows([rows], frame).whole)


@pytest.mark.parametrize("changed", [lambda y: y.flip(2), lambda y: 5 * y], ids=["permuted", "scaled"])
def test_cka_and_procrustes_do_not_see_a_rotation_or_a_scale(changed: Callable[[torch.Tensor], torch.Tensor]) -> None:
    rows = group(0, 300)
    turned = Rows(rows.base, changed(rows.tuned))
    one, other = (similarities_of_rows([each], Frame.of(*each)).whole for each in (rows, turned))
    assert one.cka == pytest.approx(other.cka, rel=1e-7)
    assert one.procrustes == pytest.approx(other.procrustes, rel=1e-7)  # the scaled rows are in float32
    assert one.relative_l2 != pytest.approx(other.relative_l2, rel=0.1)
