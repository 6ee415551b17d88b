"""Paired tests of members: by hand, their error rate, and what is not compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from layerdrift.contract.report import Measured, ModelOutputs, Outputs
from layerdrift.contract.study_report import PairedTest
from tests.builders.reports import sound_language
from tests.builders.studies import member_report, outcomes, study_request
from workers.analysis.mcnemar import mcnemar_p
from workers.results.text_scores import ScoreName, TextScores
from workers.studies.paired import LEAST_TEXTS, paired_tests

PERPLEXITY = Outputs(kind="causal_lm", examples=100, tuned=ModelOutputs(perplexity=Measured(value=5.0)))


def scores(
    sums: Sequence[float],
    name: ScoreName = "accuracy",
    first: int = 0,
    units: Sequence[int] | None = None,
    count: float = 1.0,
) -> TextScores:
    many = len(sums)
    return TextScores(
        name=name,
        texts=tuple(f"text {first + number}" for number in range(many)),
        units=tuple(range(many) if units is None else units),
        sums=tuple(map(float, sums)),
        counts=(count,) * many,
    )


def compared(*given: TextScores, outputs: Outputs | None = None) -> list[PairedTest]:
    members = [
        {"name": str(place), "task": "t", "tuned": {"uri": f"s3://m/{place}"}, "dataset": {"uri": "s3://d/a.csv"}}
        for place in range(len(given))
    ]
    own = member_report([0, 0.1])
    if outputs is not None or given[0].name != "accuracy":
        own = own.model_copy(update={"outputs": outputs or PERPLEXITY})
    found = outcomes(study_request(members=members), {str(place): own for place in range(len(given))})
    return paired_tests([replace(one, scores=each) for one, each in zip(found, given, strict=True)], ["t"])


def test_accuracies_are_compared_by_mcnemars_test_on_the_shared_texts() -> None:
    one, other = [1] * 30 + [0] * 10, [1] * 40
    (found,) = compared(scores(one), scores(other))
    assert found.texts == 40
    assert found.difference.value == pytest.approx(0.25)
    assert found.p == pytest.approx(mcnemar_p(10, 0))


def test_texts_that_only_one_was_asked_do_not_count() -> None:
    (found,) = compared(scores([1] * 50), scores([1] * 30 + [0] * 20, first=10))
    assert found.texts == 40
    assert found.difference.value == pytest.approx(-10 / 40)


def test_too_few_shared_texts_and_other_metrics_are_not_compared() -> None:
    many = [1.0] * 50
    assert compared(scores(many), scores(many, first=51 - LEAST_TEXTS)) == []
    assert len(compared(scores(many), scores(many, first=50 - LEAST_TEXTS))) == 1
    assert compared(scores(many), scores(many, "perplexity")) == []


def test_equal_models_are_not_told_apart() -> None:
    (found,) = compared(scores([1, 0] * 20), scores([1, 0] * 20))
    assert (found.difference.value, found.p) == (0.0, 1.0)
    (found,) = compared(scores([2.0, 3.0] * 20, "perplexity"), scores([2.0, 3.0] * 20, "perplexity"))
    assert (found.difference.value, found.p) == (1.0, 1.0)


def test_a_ratio_of_perplexities_is_over_all_tokens() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(20.0, 1.0, 200)
    other = one + rng.normal(1.0, 0.2, 200)
    (found,) = compared(scores(list(one), "perplexity", count=10.0), scores(list(other), "perplexity", count=10.0))
    assert found.difference.value == pytest.approx(np.exp((other - one).mean() / 10))
    assert found.p < 1e-6


def test_texts_that_are_alike_count_as_one() -> None:
    one, other = [0] * 60, [1] * 10 + [0] * 50
    alone = compared(scores(one), scores(other))[0]
    units = [0] * 10 + [1 + number // 10 for number in range(50)]
    grouped = compared(scores(one, units=units), scores(other, units=units))[0]
    assert grouped.difference.value == alone.difference.value
    assert grouped.p > 0.1 > alone.p


@pytest.mark.parametrize(("name", "least"), [("accuracy", 5), ("perplexity", 10)])
def test_too_few_groups_of_texts_that_are_alike_are_not_compared(name: ScoreName, least: int) -> None:
    one, other = [20.0] * 60, [21.0 + number % 7 for number in range(60)]
    if name == "accuracy":
        one, other = [0.0] * 60, [float(number % 2) for number in range(60)]
    few, enough = ([number % groups for number in range(60)] for groups in (least - 1, least))
    assert compared(scores(one, name, units=few), scores(other, name, units=few)) == []
    assert len(compared(scores(one, name, units=enough), scores(other, name, units=enough))) == 1


def test_p_values_are_adjusted_as_holm_does() -> None:
    base = [0] * 40
    found = compared(scores(base), scores([1] * 4 + [0] * 36), scores([1] * 12 + [0] * 28))
    raw = [one.p for one in found]
    order = np.argsort(raw)
    naive = np.maximum.accumulate([min(1.0, (3 - rank) * raw[place]) for rank, place in enumerate(order)])
    assert [found[place].p_adjusted for place in order] == pytest.approx(list(naive))


@pytest.mark.parametrize("name", ["accuracy", "perplexity"])
def test_equally_good_models_are_told_apart_in_5_of_100_cases_at_most(name: ScoreName) -> None:
    rng, wrong, runs = np.random.default_rng(3), 0, 400
    for _ in range(runs):
        pair = (rng.random((2, 200)) < 0.8).astype(float) if name == "accuracy" else rng.normal(20.0, 3.0, (2, 200))
        (found,) = compared(*(scores(list(each), name, count=1.0 if name == "accuracy" else 10.0) for each in pair))
        wrong += found.p <= 0.05
    assert wrong / runs <= 0.075
    assert wrong > 0


def test_questions_with_choices_are_not_compared_by_their_perplexity() -> None:
    choices = sound_language().outputs
    both = [scores([20.0 + number for number in range(40)], "answers_perplexity") for _ in range(2)]
    assert compared(*both, outputs=choices) == []


def test_small_p_values_of_perplexities_are_those_of_a_t_test() -> None:
    rng = np.random.default_rng(4)
    difference = rng.normal(1.0, 1.0, 20)  # 10 groups of two texts
    one = np.full(20, 20.0)
    (found,) = compared(scores(list(one), "perplexity"), scores(list(one + difference), "perplexity"))
    means = difference[:10] + difference[10:]
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=0.05)
