"""Intervals of proportions cover what they say, near 0 and 1 too: exact sums over all outcomes."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import binom, multinomial

from workers.analysis.jackknife import jackknife_interval
from workers.analysis.proportions import change_interval, effective, share_interval
from workers.stages.common.intervals import share

TEXTS = 200


def coverage(texts: int, share: float) -> float:
    covered = 0.0
    for hits in range(texts + 1):
        low, high = share_interval(hits, texts)
        covered += float(binom.pmf(hits, texts, share)) * (low <= share <= high)
    return covered


@pytest.mark.parametrize("texts", [100, 200, 1_000])
def test_intervals_of_shares_cover_them_on_the_average_of_shares_near_and_far_from_the_ends(texts: int) -> None:
    near = [coverage(texts, share / 1_000) for share in range(950, 998)]
    far = [coverage(texts, share / 100) for share in range(50, 95)]
    for found in (near, far):
        assert 0.93 <= sum(found) / len(found) <= 0.97
        assert min(found) > 0.87  # counts are whole, so single shares lie beside the nominal level


def test_the_jackknife_covers_a_share_of_0_995_in_two_thirds_of_samples() -> None:
    """Why it is not used here: with no wrong answer among 200 texts it has no width."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(500):
        hits = (torch.rand(TEXTS, generator=generator) < 0.995).double()
        groups = hits.reshape(20, 10).sum(1)
        left_out = [float(hits.sum() - group) / (TEXTS - 10) for group in groups]
        low, high = jackknife_interval(float(hits.mean()), left_out)
        covered += low <= 0.995 <= high
    assert covered / 500 < 0.7
    assert coverage(TEXTS, 0.995) > 0.9


@pytest.mark.parametrize(("differing", "change"), [(0.2, 0.0), (0.2, 0.05), (0.05, -0.03), (0.04, 0.0), (0.1, 0.1)])
def test_intervals_of_changes_cover_them(differing: float, change: float) -> None:
    shares = [(differing + change) / 2, (differing - change) / 2, 1 - differing]
    most = 80
    covered = seen = 0.0
    for gains, losses in itertools.product(range(most), range(most)):
        chance = float(multinomial.pmf([gains, losses, TEXTS - gains - losses], TEXTS, shares))
        low, high = change_interval(gains, losses, TEXTS)
        covered += chance * (low <= change <= high)
        seen += chance
    assert seen > 0.9999
    assert covered >= 0.93


@pytest.mark.parametrize(("change", "failing", "silent"), [(0.0, 0.025, 1.0), (-0.02, 0.03, 0.6), (-0.05, 1.0, 0.03)])
def test_the_starter_rules_on_accuracy_fail_equal_models_rarely_and_never_stay_silent_on_worse_ones(
    change: float, failing: float, silent: float
) -> None:
    """200 texts, 20 % of the answers differ; judged by values, an equal model failed in 26 %, and 17 % of models that
    are five points worse passed."""
    shares = [(0.2 + change) / 2, (0.2 - change) / 2, 0.8]
    fails = passes = 0.0
    for gains, losses in itertools.product(range(60), range(60)):
        chance = float(multinomial.pmf([gains, losses, TEXTS - gains - losses], TEXTS, shares))
        low, high = change_interval(gains, losses, TEXTS)
        fails += chance * (high < -0.02)
        passes += chance * (high >= -0.02 and low >= -0.05)
    assert fails <= failing
    assert passes <= silent


def test_no_difference_is_not_certainty() -> None:
    low, high = change_interval(0, 0, TEXTS)
    assert -0.02 < low < 0 < high < 0.02
    low, high = share_interval(TEXTS, TEXTS)
    assert 0.97 < low < 0.99
    assert high == 1.0


def test_known_values() -> None:
    """By hand from the formulas of the papers."""
    assert share_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    change, square, count = -2 / 12, 7 / 12, 12
    half = 1.959964 * ((square - change**2) / count) ** 0.5
    assert change_interval(2, 4, 10) == pytest.approx((change - half, change + half), abs=1e-6)


@pytest.mark.parametrize("counts", [(3, 2), (-1, 2), (0, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a share needs"):
        share_interval(*counts)


@pytest.mark.parametrize("counts", [(3, 3, 5), (-1, 0, 5), (0, 0, 0)])
def test_impossible_changes_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="are impossible"):
        change_interval(*counts)


def test_one_question_of_each_text_counts_whole_and_many_alike_as_one() -> None:
    ones = torch.ones(TEXTS, dtype=torch.float64)
    found = share(ones, ones)
    assert found.low == pytest.approx(share_interval(TEXTS, TEXTS).low)
    assert share(3 * ones, 3 * ones).low == found.low  # tokens of one text are alike: of no difference, one each
    hits = (torch.arange(TEXTS) % 4 > 0).double()
    assert effective(torch.stack([3 * hits, 3 * hits], 1), 3 * ones) == pytest.approx(TEXTS, rel=0.02)
    spread = torch.full((TEXTS,), 2.0, dtype=torch.float64)  # two of three everywhere: not alike at all
    assert effective(torch.stack([spread, spread], 1), 3 * ones) == 3 * TEXTS


@pytest.mark.parametrize("rare", [0.002, 0.01, 0.2])
def test_intervals_of_shares_of_tokens_cover_them(rare: float) -> None:
    """Tokens of one text are alike (intraclass correlation 0.1), 40 of each of 150 texts."""
    torch.manual_seed(0)
    texts, tokens, alike = 150, 40, 0.1
    of_text = torch.distributions.Beta(rare * (1 - alike) / alike, (1 - rare) * (1 - alike) / alike)
    covered = 0
    for _ in range(400):
        hits = torch.distributions.Binomial(tokens, of_text.sample((texts,))).sample().double()
        found = share(hits, torch.full((texts,), float(tokens), dtype=torch.float64))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= rare <= found.high
    assert 0.9 <= covered / 400 <= 0.985
