from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.analysis.jackknife import jackknife_interval
from workers.analysis.moments import Frame, PairMoments
from workers.analysis.similarity import similarities

GROUPS, TOKENS_OF_A_TEXT, WIDTH = 20, 20, 8


def test_the_interval_of_a_mean_is_that_of_students_t() -> None:
    """For a mean the jackknife is exact: leaving one value out of n gives the textbook interval."""
    values = torch.tensor([3.0, 5.0, 4.0, 8.0, 7.0, 1.0], dtype=torch.float64)
    left_out = [float(values[torch.arange(6) != index].mean()) for index in range(6)]
    low, high = jackknife_interval(float(values.mean()), left_out)
    half = 2.5705818 * float(values.std()) / 6**0.5
    assert (low, high) == pytest.approx((float(values.mean()) - half, float(values.mean()) + half), rel=1e-6)


def test_the_bias_of_an_estimate_is_taken_out() -> None:
    """The plug-in variance is biased by (n - 1) / n; the jackknife's centre is the unbiased one."""
    values = torch.tensor([3.0, 5.0, 4.0, 8.0, 7.0, 1.0], dtype=torch.float64)
    left_out = [float(values[torch.arange(6) != index].var(correction=0)) for index in range(6)]
    low, high = jackknife_interval(float(values.var(correction=0)), left_out)
    assert (low + high) / 2 == pytest.approx(float(values.var()))


def test_what_never_varies_has_an_interval_of_no_width() -> None:
    assert jackknife_interval(1.0, [1.0] * 20) == (1.0, 1.0)


def test_one_group_gives_no_interval() -> None:
    with pytest.raises(ValueError, match="two groups or more"):
        jackknife_interval(1.0, [1.0])


def clustered(texts: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens in texts: half of a token's variance is its text's. [texts, tokens, width] of both models."""
    text = torch.randn(texts, 1, WIDTH, generator=generator, dtype=torch.float64)
    token = torch.randn(texts, TOKENS_OF_A_TEXT, WIDTH, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, -1, WIDTH, dtype=torch.float64)
    base = (text + token) * scales
    other_text = torch.randn(texts, 1, WIDTH, generator=generator, dtype=torch.float64)
    other_token = torch.randn(texts, TOKENS_OF_A_TEXT, WIDTH, generator=generator, dtype=torch.float64)
    return base, base + noise * (other_text + other_token) * scales


def interval(base: Tensor, tuned: Tensor, measure: str) -> tuple[float, float]:
    frame = Frame.of(base.flatten(0, 1)[None], tuned.flatten(0, 1)[None])

    def moments(rows: slice) -> PairMoments:
        found = PairMoments.zeros(frame)
        found.add(base[rows].flatten(0, 1)[None], tuned[rows].flatten(0, 1)[None])
        return found

    groups = [moments(slice(group, None, GROUPS)) for group in range(GROUPS)]
    total = moments(slice(None))
    left_out = [getattr(similarities(total.without(group))[0], measure) for group in groups]
    return jackknife_interval(getattr(similarities(total)[0], measure), left_out)


@pytest.mark.parametrize("noise", [0.2, 1.0])
@pytest.mark.parametrize("measure", ["cka", "cosine_centred", "relative_l2"])
def test_intervals_cover_the_truth_as_often_as_they_say(measure: str, noise: float) -> None:
    """Of 400 data sets of 100 texts, 90 to 98 % of the nominal 95 % intervals hold the value of 20,000 texts."""
    base, tuned = clustered(20_000, noise, torch.Generator().manual_seed(99))
    whole = PairMoments.zeros(Frame.of(base.flatten(0, 1)[None], tuned.flatten(0, 1)[None]))
    whole.add(base.flatten(0, 1)[None], tuned.flatten(0, 1)[None])
    truth = getattr(similarities(whole)[0], measure)
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        low, high = interval(*clustered(100, noise, generator), measure)
        covered += low <= truth <= high
    assert 0.90 <= covered / 400 <= 0.98
