"""The order of candidates, and the Pareto front against a naive one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdrift.contract.analysis import Status
from layerdrift.contract.policy import Decision
from layerdrift.contract.report import Measured
from layerdrift.contract.study_report import MemberLayer, MetricName, StudyMetric, StudyReportMember
from workers.studies.ranking import rankings

LAYER = MemberLayer(index=0, zone="general", drift=Measured(value=0.1), drifted=False, general=True)


def member(
    name: str, value: float | None, drift: float = 0.1, decision: Decision | None = "pass", **changes: Any
) -> StudyReportMember:
    kind: MetricName = changes.pop("metric", "accuracy")
    return StudyReportMember(
        name=name,
        task="t",
        analysis_id="an_x",
        status=Status.SUCCEEDED,
        layers=[LAYER],
        mean_drift=drift,
        metric=None if value is None else StudyMetric(name=kind, value=Measured(value=value)),
        decision=decision,
        **changes,
    )


def order(*members: StudyReportMember) -> list[tuple[str, int]]:
    (ranking,) = rankings(members, ["t"])
    return [(one.name, one.rank) for one in ranking.members]


def test_the_policy_comes_before_the_metric() -> None:
    members = (
        member("failed", 0.99, decision="fail"),
        member("unknown", 0.98, decision=None),
        member("warned", 0.97, decision="warn"),
        member("passed", 0.5),
    )
    assert order(*members) == [("passed", 1), ("warned", 2), ("unknown", 3), ("failed", 4)]


def test_a_smaller_perplexity_is_better() -> None:
    found = order(member("a", 5.0, metric="perplexity"), member("b", 4.0, metric="perplexity"))
    assert found == [("b", 1), ("a", 2)]


def test_equal_members_share_a_rank_and_none_is_best() -> None:
    (ranking,) = rankings([member("a", 0.9), member("b", 0.9), member("c", 0.8)], ["t"])
    assert [one.rank for one in ranking.members] == [1, 1, 3]
    assert ranking.best is None


def test_a_member_that_the_policy_fails_is_never_best_nor_on_the_front() -> None:
    (ranking,) = rankings([member("a", 0.9, decision="fail")], ["t"])
    assert ranking.best is None
    assert not ranking.members[0].on_front


def test_without_a_common_metric_the_policy_alone_decides() -> None:
    (ranking,) = rankings([member("a", 0.9), member("b", 4.0, metric="perplexity")], ["t"])
    assert ranking.metric is None
    assert [one.rank for one in ranking.members] == [1, 1]
    assert not any(one.on_front for one in ranking.members)


def test_a_task_without_a_report_has_no_ranking() -> None:
    assert rankings([member("a", 0.9)], ["t", "other"])[0].task == "t"
    assert len(rankings([member("a", 0.9)], ["t", "other"])) == 1


POINTS = st.lists(st.tuples(st.sampled_from([0.5, 0.7, 0.9]), st.sampled_from([0.1, 0.2, 0.3])), min_size=1, max_size=8)


@given(POINTS)
def test_the_front_is_who_nobody_beats(points: list[tuple[float, float]]) -> None:
    members = [member(str(number), metric, drift) for number, (metric, drift) in enumerate(points)]
    (ranking,) = rankings(members, ["t"])
    beaten = {
        str(number)
        for number, (metric, drift) in enumerate(points)
        for other_metric, other_drift in points
        if other_metric >= metric and other_drift <= drift and (other_metric > metric or other_drift < drift)
    }
    assert {one.name for one in ranking.members if not one.on_front} == beaten


@pytest.mark.parametrize("value", [None, 0.9])
def test_a_missing_drift_is_not_made_up(value: float | None) -> None:
    (ranking,) = rankings([member("a", value, drift=0.0)], ["t"])
    assert ranking.members[0].mean_drift == 0.0
