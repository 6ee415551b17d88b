"""Variance over seeds and tasks: by hand, against scipy, and the coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from workers.analysis.variance import between, within


def _simulated(rng: np.random.Generator, task_sd: float, seed_sd: float, tasks: int, seeds: int) -> list[list[float]]:
    means = rng.normal(0.0, task_sd, tasks)
    return [list(mean + rng.normal(0.0, seed_sd, seeds)) for mean in means]


def test_spread_over_repeats_is_pooled_over_groups() -> None:
    found = within([[1.0, 3.0], [10.0, 10.0, 13.0], [5.0]])
    assert found is not None
    assert found.degrees == 3
    assert found.sd == pytest.approx(np.sqrt((2.0 + 6.0) / 3))
    assert found.interval.low < found.sd < found.interval.high


@pytest.mark.parametrize("groups", [[], [[1.0], [2.0]], [[1.0, 1.0], [2.0, 2.0]]])
def test_without_repeats_that_differ_there_is_no_spread(groups: list[list[float]]) -> None:
    assert within(groups) is None
    assert between({"full": groups}) is None


def test_the_f_test_of_tasks_is_the_one_way_analysis_of_variance() -> None:
    groups = _simulated(np.random.default_rng(0), task_sd=1.0, seed_sd=1.0, tasks=4, seeds=3)
    found = between({"full": groups})
    assert found is not None
    assert found.p == pytest.approx(stats.f_oneway(*groups).pvalue)


def test_tasks_are_compared_within_a_recipe() -> None:
    full = [[0.0, 0.1], [0.0, 0.1]]
    lora = [[value + 100 for value in group] for group in full]
    found = between({"full": full, "lora": lora})
    assert found is not None
    assert found.sd == 0.0
    assert found.p > 0.5


def test_a_recipe_with_one_task_tells_of_seeds_alone() -> None:
    assert between({"full": [[0.0, 1.0]]}) is None


@pytest.mark.parametrize(("task_sd", "seed_sd"), [(0.0, 1.0), (1.0, 1.0), (3.0, 1.0)])
def test_intervals_hold_the_truth_in_95_of_100(task_sd: float, seed_sd: float) -> None:
    rng, held = np.random.default_rng(1), {"seed": 0, "share": 0, "reseeding": 0}
    runs = 1_000
    for _ in range(runs):
        groups = _simulated(rng, task_sd, seed_sd, tasks=3, seeds=3)
        seeds, tasks = within(groups), between({"full": groups})
        assert seeds is not None
        assert tasks is not None
        held["seed"] += seeds.interval.low <= seed_sd <= seeds.interval.high
        truth = task_sd**2 / (task_sd**2 + seed_sd**2)
        held["share"] += tasks.interval.low <= truth <= tasks.interval.high
        held["reseeding"] += abs(rng.normal(0, seed_sd) - rng.normal(0, seed_sd)) <= seeds.reseeding
    for name, count in held.items():
        least = 0.93
        assert count / runs >= least, name
    if task_sd:
        assert held["share"] / runs <= 0.97
