"""Members of a task on the texts that they share: paired tests of their metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from scipy.stats import norm, t

from layerdrift.contract.report import Measured
from layerdrift.contract.study_report import PairedTest
from workers.analysis.mcnemar import mcnemar_p
from workers.results import measured as results
from workers.results.text_scores import TextScores
from workers.stages.common.intervals import change, ratio
from workers.stages.common.moment_accumulator import group_count
from workers.studies.outcomes import Outcome, metric

LEAST_TEXTS = 20
"""Shared texts below which nothing can be told of two models."""

_Text = tuple[int, float, float]
"""Unit, sum and count."""


class _Shared(NamedTuple):
    """Two models on M units of texts: sums of each, and counts; [M] each."""

    texts: int
    alone: bool
    one: torch.Tensor
    other: torch.Tensor
    counts: torch.Tensor


def paired_tests(outcomes: Sequence[Outcome], tasks: Sequence[str]) -> list[PairedTest]:
    """Every two members of a task with one metric that share enough texts, and groups of them where texts are alike.

    Accuracies: McNemar's exact test, with units of several texts a normal test of the change; of perplexities the test
    that the jackknife interval of their ratio's logarithm gives. p-values are adjusted by Holm's method in each task.
    """
    found: list[PairedTest] = []
    for task in tasks:
        known = [one for one in outcomes if one.task == task and one.report is not None and one.scores is not None]
        tests = [test for one, other in combinations(known, 2) for test in tested(task, one, other)]
        found += _adjusted(tests)
    return found


def tested(task: str, one: Outcome, other: Outcome) -> Iterator[PairedTest]:
    """The test of two members, unadjusted; none where they have other metrics or share too few texts or groups."""
    if one.scores is None or other.scores is None or one.scores.name != other.scores.name:
        return
    if not (_is_of_metric(one) and _is_of_metric(other)):
        return
    shared = _shared(one.scores, other.scores)
    if shared is None:
        return
    difference, p = (_accuracies if one.scores.name == "accuracy" else _perplexities)(shared)
    if difference.low is None:
        return
    yield PairedTest(
        task=task,
        one=one.name,
        other=other.name,
        metric=one.scores.name,
        texts=shared.texts,
        difference=Measured(value=difference.value, low=difference.low, high=difference.high),
        p=p,
        p_adjusted=p,
    )


def _is_of_metric(outcome: Outcome) -> bool:
    """Whether the scores are of the metric that ranks the member: of choices and preferences there are none."""
    found = metric(outcome.report) if outcome.report is not None else None
    return found is not None and outcome.scores is not None and found.name == outcome.scores.name


def _shared(one: TextScores, other: TextScores) -> _Shared | None:
    """The texts that both were asked, by the first one's units; None where they are too few.

    A text that stands more than once counts once: which of its copies is whose cannot be told.
    """
    first, second = _by_text(one), _by_text(other)
    both = [text for text in first if text in second and first[text][2] == second[text][2] > 0]
    if len(both) < LEAST_TEXTS:
        return None
    numbers = {unit: place for place, unit in enumerate(dict.fromkeys(first[text][0] for text in both))}
    sums = torch.zeros(3, len(numbers), dtype=torch.float64)
    for text in both:
        sums[:, numbers[first[text][0]]] += torch.tensor([first[text][1], second[text][1], first[text][2]])
    return _Shared(len(both), len(numbers) == len(both), *sums)


def _by_text(scores: TextScores) -> dict[str, _Text]:
    return {
        text: (unit, total, count)
        for text, unit, total, count in zip(scores.texts, scores.units, scores.sums, scores.counts, strict=True)
    }


def _accuracies(shared: _Shared) -> tuple[results.Measured, float]:
    """The second one's accuracy less the first one's, and the p-value that they are equal."""
    difference = shared.other - shared.one
    found = change(difference.clamp(min=0), (-difference).clamp(min=0), shared.counts)
    if shared.alone:
        return found, mcnemar_p(int((difference > 0).sum()), int((difference < 0).sum()))
    return found, _p_of(found, float(norm.ppf(0.975)), norm.sf)


def _perplexities(shared: _Shared) -> tuple[results.Measured, float]:
    """The second one's perplexity over the first one's, and the p-value that it is 1."""
    units = torch.arange(len(shared.counts))
    groups = units % group_count(len(units))
    count = int(groups.max()) + 1
    sums, counts = (
        torch.zeros(count, dtype=torch.float64).index_add_(0, groups, one)
        for one in (shared.other - shared.one, shared.counts)
    )
    logarithm = ratio(sums, counts)
    found = ratio(sums, counts, math.exp, (0.0, math.inf))
    freedom = count - 1
    return found, _p_of(logarithm, float(t.ppf(0.975, freedom)), lambda value: t.sf(value, freedom))


def _p_of(found: results.Measured, quantile: float, tail: Callable[[float], float]) -> float:
    """The p-value that an estimate with this 95 % interval gives to 0; 1, of no use, where it has none.

    Args:
        quantile: half of the interval in standard errors. tail: the share of the distribution above a value.
    """
    if found.value is None or found.low is None or found.high is None:
        return 1.0
    error = (found.high - found.low) / (2 * quantile)
    if error <= 0:
        return 1.0 if found.value == 0.0 else 0.0
    return float(min(1.0, 2 * tail(abs(found.value) / error)))


def _adjusted(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """With Holm's p-values, in the order given."""
    order = sorted(range(len(tests)), key=lambda place: tests[place].p)
    adjusted, largest = dict[int, float](), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(tests) - rank) * tests[place].p))
        adjusted[place] = largest
    return [test.model_copy(update={"p_adjusted": adjusted[place]}) for place, test in enumerate(tests)]
