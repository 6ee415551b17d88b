from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.analysis.geometry import Geometry, PairDistances
from workers.analysis.jackknife import Interval, jackknife_interval
from workers.analysis.moments import Frame, PairMoments
from workers.analysis.similarity import SiteSimilarity, similarities

GROUPS, TOKENS_OF_A_TEXT, WIDTH, DATA_SETS = 20, 20, 8, 400
MEASURES = ("cka", "cosine_centred", "relative_l2", "cka_standardized", "procrustes")


def clustered(texts: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens in texts: half of a token's variance is its text's. [texts, tokens, width] of both models."""
    text = torch.randn(texts, 1, WIDTH, generator=generator, dtype=torch.float64)
    token = torch.randn(texts, TOKENS_OF_A_TEXT, WIDTH, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, -1, WIDTH, dtype=torch.float64)
    base = (text + token) * scales
    other_text = torch.randn(texts, 1, WIDTH, generator=generator, dtype=torch.float64)
    other_token = torch.randn(texts, TOKENS_OF_A_TEXT, WIDTH, generator=generator, dtype=torch.float64)
    return base, base + noise * (other_text + other_token) * scales


def moments_of(base: Tensor, tuned: Tensor, frame: Frame) -> PairMoments:
    found = PairMoments.zeros(frame)
    found.add(base.flatten(0, 1)[None], tuned.flatten(0, 1)[None])
    return found


def total_of(base: Tensor, tuned: Tensor) -> SiteSimilarity:
    frame = Frame.of(base.flatten(0, 1)[None], tuned.flatten(0, 1)[None])
    return similarities(moments_of(base, tuned, frame))[0]


def intervals(base: Tensor, tuned: Tensor) -> dict[str, Interval]:
    frame = Frame.of(base.flatten(0, 1)[None], tuned.flatten(0, 1)[None])
    total = moments_of(base, tuned, frame)
    groups = [moments_of(base[group::GROUPS], tuned[group::GROUPS], frame) for group in range(GROUPS)]
    left_out = [similarities(total.without(group))[0] for group in groups]
    whole = similarities(total)[0]
    return {
        measure: jackknife_interval(getattr(whole, measure), [getattr(one, measure) for one in left_out])
        for measure in MEASURES
    }


def means(texts: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A row for each text, in both models."""
    base, tuned = clustered(texts, noise, generator)
    return base.mean(1), tuned.mean(1)


def distance_intervals(base: Tensor, tuned: Tensor) -> tuple[Geometry, Interval, Interval]:
    distances, groups = PairDistances(base, tuned), torch.arange(len(base)) % GROUPS
    whole = distances.geometry()
    left_out = [distances.geometry(groups != group) for group in range(GROUPS)]
    assert whole.rsa is not None
    assert whole.knn_jaccard is not None
    rsa = jackknife_interval(whole.rsa, [one.rsa for one in left_out if one.rsa is not None])
    shared = [one.knn_jaccard for one in left_out if one.knn_jaccard is not None]
    return whole, rsa, jackknife_interval(whole.knn_jaccard, shared, corrected=False)


@pytest.mark.parametrize("noise", [0.2, pytest.param(1.0, marks=pytest.mark.slow)])
def test_intervals_cover_the_truth_as_often_as_they_say(noise: float) -> None:
    """Of 400 data sets of 100 texts, 90 to 98 % of the nominal 95 % intervals hold the value of 20,000 texts."""
    base, tuned = clustered(20_000, noise, torch.Generator().manual_seed(99))
    truth = total_of(base, tuned)
    generator = torch.Generator().manual_seed(0)
    covered = dict.fromkeys(MEASURES, 0)
    for _ in range(DATA_SETS):
        found = intervals(*clustered(100, noise, generator))
        for measure, (low, high) in found.items():
            covered[measure] += low <= getattr(truth, measure) <= high
    shares = {measure: count / DATA_SETS for measure, count in covered.items()}
    assert {measure: share for measure, share in shares.items() if not 0.90 <= share <= 0.98} == {}


@pytest.mark.parametrize("noise", [pytest.param(0.2, marks=pytest.mark.slow), 1.0])
def test_intervals_of_distances_cover_what_as_many_texts_give_on_average(noise: float) -> None:
    """Of 400 samples of 100 texts: RSA against that of 3,000 texts, shared neighbours against their own mean."""
    generator = torch.Generator().manual_seed(0)
    rsa_truth = PairDistances(*means(3000, noise, torch.Generator().manual_seed(99))).geometry().rsa
    assert rsa_truth is not None
    found = [distance_intervals(*means(100, noise, generator)) for _ in range(DATA_SETS)]
    knn_truth = sum(one.knn_jaccard for one, _, _ in found if one.knn_jaccard is not None) / DATA_SETS
    rsa_share = sum(low <= rsa_truth <= high for _, (low, high), _ in found) / DATA_SETS
    knn_share = sum(low <= knn_truth <= high for _, _, (low, high) in found) / DATA_SETS
    assert 0.90 <= rsa_share <= 0.98
    assert 0.90 <= knn_share <= 0.98
