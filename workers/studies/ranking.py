"""The members of a task in order: by the policy, by the metric, and against their drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from layerdrift.contract.policy import Decision
from layerdrift.contract.study_report import MetricName, PairedTest, RankedMember, StudyReportMember, TaskRanking

SIGNIFICANT = 0.05

_ORDER: dict[Decision | None, int] = {"pass": 0, "warn": 1, None: 2, "fail": 3}


class _Candidate(NamedTuple):
    """A member with a report; `loss`: smaller is better, None where it has no metric in common with the others."""

    member: StudyReportMember
    loss: float | None
    drift: float

    @property
    def place(self) -> tuple[int, bool, float]:
        """Members of a smaller place come first; equal ones share a rank."""
        return _ORDER[self.member.decision], self.loss is None, self.loss or 0.0


def rankings(
    members: Sequence[StudyReportMember], tasks: Sequence[str], tests: Sequence[PairedTest] = ()
) -> list[TaskRanking]:
    """By task; tasks without a member that has a report have no ranking."""
    found = ((task, [member for member in members if member.task == task and member.layers]) for task in tasks)
    return [_told_apart(_ranking(task, of_task), tests) for task, of_task in found if of_task]


def _told_apart(ranking: TaskRanking, tests: Sequence[PairedTest]) -> TaskRanking:
    """With what the tests say of each member and those of rank 1."""
    first = {one.name for one in ranking.members if one.rank == 1}
    p_of = {
        frozenset((test.one, test.other)): test.p_adjusted
        for test in tests
        if test.task == ranking.task and test.metric == ranking.metric
    }

    def told(member: RankedMember) -> bool | None:
        known = [p_of[pair] for name in first if (pair := frozenset((name, member.name))) in p_of]
        return None if member.name in first or not known else max(known) <= SIGNIFICANT

    return ranking.model_copy(
        update={"members": [one.model_copy(update={"differs_from_first": told(one)}) for one in ranking.members]}
    )


def _ranking(task: str, members: Sequence[StudyReportMember]) -> TaskRanking:
    metric = _common_metric(members)
    candidates = sorted((_candidate(member, metric) for member in members), key=lambda one: one.place)
    ranked = [
        RankedMember(
            name=one.member.name,
            rank=1 + sum(other.place < one.place for other in candidates),
            decision=one.member.decision,
            metric=one.member.metric.value.value if metric is not None and one.member.metric is not None else None,
            mean_drift=one.drift,
            on_front=_on_front(one, candidates),
        )
        for one in candidates
    ]
    first = [one for one in ranked if one.rank == 1]
    best = first[0].name if len(first) == 1 and first[0].decision != "fail" else None
    return TaskRanking(task=task, metric=metric, members=ranked, best=best)


def _common_metric(members: Sequence[StudyReportMember]) -> MetricName | None:
    names = {member.metric.name if member.metric is not None else None for member in members}
    return names.pop() if len(names) == 1 else None


def _candidate(member: StudyReportMember, metric: MetricName | None) -> _Candidate:
    value = member.metric.value.value if metric is not None and member.metric is not None else None
    loss = None
    if value is not None and member.metric is not None:
        loss = -value if member.metric.higher_is_better else value
    return _Candidate(member, loss, member.mean_drift or 0.0)


def _on_front(one: _Candidate, candidates: Sequence[_Candidate]) -> bool:
    """Whether nobody whom the policy admits is at least as good in both, and better in one."""
    if one.loss is None or one.member.decision == "fail":
        return False
    for other in candidates:
        if other.loss is None or other.member.decision == "fail":
            continue
        if other.loss <= one.loss and other.drift <= one.drift and (other.loss, other.drift) != (one.loss, one.drift):
            return False
    return True
