"""A study in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from layerdrift.contract.study_report import LoraTrialResult
from layerdrift.render import study_sentences as sentences
from tests.builders.studies import made_study, member_report, study_request

PASSING = {"rules": [{"id": "a", "path": "layers[0].drift", "max": 1, "message": "m"}]}


@pytest.mark.parametrize(
    ("indices", "expected"),
    [([], ""), ([3], "layer 3"), ([0, 1, 2], "layers 0 to 2"), ([0, 1, 4, 6, 7], "layers 0 to 1, 4, 6 to 7")],
)
def test_neighbouring_layers_are_one_span(indices: Sequence[int], expected: str) -> None:
    assert sentences.spans(indices) == expected


def test_the_headline_says_for_how_many_tasks_layers_are_general() -> None:
    assert sentences.headline(made_study()) == (
        "4 fine-tunes of one base for 2 tasks. General for all tasks: layer 0; general for some: layer 1; general for "
        "none: layers 2 to 3."
    )


def test_of_one_task_no_others_are_spoken_of() -> None:
    members = [one.model_dump() for one in study_request().members[:2]]
    report = made_study(study_request(members=members), {"reviews-0": member_report([0, 0.1], general=1)})
    assert (
        sentences.headline(report)
        == "2 fine-tunes (1 without a report) of one base for 1 task. General in all of them: layer 0."
    )
    assert sentences.seeds(report) is None


def test_seeds_and_tasks_are_told_with_the_layers_where_they_differ() -> None:
    told = sentences.seeds(made_study())
    assert told is not None
    assert "Drift differs between tasks, texts included, at layers 1 to 3" in told


def test_tasks_that_do_not_differ_are_said_not_to() -> None:
    drifts = {"reviews-0": 0.1, "reviews-1": 0.2, "spam-0": 0.1, "spam-1": 0.21}
    told = sentences.seeds(made_study(reports={name: member_report([0, drift]) for name, drift in drifts.items()}))
    assert told is not None
    assert told.endswith("No layer shows a difference between tasks beyond that between seeds (F test, p ≤ 0.05).")


@pytest.mark.parametrize(
    ("depths", "expected"),
    [
        ((0, 2), "Freeze nothing: the smallest own advice of 2 members. Alone, these could freeze more: spam-0 2."),
        ((1, 1), "Freeze the embeddings and the first block: the smallest own advice of 2 members."),
        ((2, 3), "Freeze the embeddings and the first 2 blocks: the smallest own advice of 2 members."),
    ],
)
def test_the_common_depth_is_told(depths: tuple[int, int], expected: str) -> None:
    reports = {
        name: member_report(
            [0, 0.1, 0.2, 0.3], recommendation={"freeze_first": depth, "basis": "predicted", "evidence": "e"}
        )
        for name, depth in zip(("reviews-0", "spam-0"), depths, strict=True)
    }
    told = sentences.freezing(made_study(reports=reports))
    assert told is not None
    assert told.startswith(expected)


def test_who_comes_first_is_told_with_the_metric() -> None:
    reports = {"reviews-0": member_report([0, 0.1], accuracy=0.8), "reviews-1": member_report([0, 0.1], accuracy=0.9)}
    report = made_study(study_request(policy=PASSING), reports)
    assert sentences.best(report.rankings[0]) == "reviews: reviews-1 comes first, accuracy 0.900."


def test_members_that_are_alike_come_first_together() -> None:
    reports = {name: member_report([0, 0.1]) for name in ("reviews-0", "reviews-1")}
    report = made_study(study_request(policy=PASSING), reports)
    assert sentences.best(report.rankings[0]) == "reviews: 2 members come first together (reviews-0, reviews-1)."


def test_where_the_policy_fails_all_nobody_comes_first() -> None:
    assert sentences.best(made_study().rankings[0]) == "reviews: the policy passes no member."


def test_changes_of_one_task_and_of_two_are_told_apart() -> None:
    assert sentences.shared(made_study()) == (
        "Mean cosine of the changes of two members at layer 3: of one task 0.80, of two tasks 0.10."
    )
    assert sentences.shared(made_study(reports={"spam-0": member_report([0, 0.1])})) is None


def test_trials_are_told_by_task_with_what_failed() -> None:
    report = made_study()
    assert sentences.trials(report) == []
    assert report.lora is not None
    common = {"task": "reviews", "rank": 8, "analysis_id": "an_x"}
    tried = [
        LoraTrialResult(**common, kind="chosen", layers=[2, 3], metric=report.members[0].metric),
        LoraTrialResult(**common, kind="all", layers=[1, 2, 3], metric=report.members[1].metric),
        LoraTrialResult(**common, kind="random", layers=[1, 3], error="the disk was full"),
    ]
    report = report.model_copy(update={"lora": report.lora.model_copy(update={"trials": tried})})
    assert sentences.trials(report) == [
        "reviews: LoRA on some layers, accuracy: 0.900 on the 2 that changed most; 0.920 on all 3; the disk was full "
        "on 2 random ones. One seed each."
    ]
