from __future__ import annotations

import pytest
import torch

from workers.analysis.jackknife import jackknife_interval


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
    with pytest.raises(ValueError, match="at least two groups"):
        jackknife_interval(1.0, [1.0])
