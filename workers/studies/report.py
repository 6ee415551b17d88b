"""The report of a study, from what became of its members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from layerdrift import __version__
from layerdrift.contract.comparison import unlike_settings
from layerdrift.contract.errors import InputError
from layerdrift.contract.study import StudyRequest
from layerdrift.contract.study_report import (
    RepeatGroup,
    StudyCurve,
    StudyEngine,
    StudyReport,
    StudyReportMember,
    StudySimilarity,
    StudyWarning,
    TaskRanking,
)
from workers.studies.advice import freezing, lora
from workers.studies.layers import layers_of
from workers.studies.outcomes import Outcome, shown
from workers.studies.paired import paired_tests
from workers.studies.ranking import rankings
from workers.studies.repeats import Repeats, repeats_of

FEW_DEGREES = 4
"""Degrees of freedom below which a spread over seeds is hardly known: its interval reaches from 0.6 to 3 times it."""


def study_report(
    study_id: str,
    title: str,
    request: StudyRequest,
    outcomes: Sequence[Outcome],
    created_at: datetime,
    similarity: StudySimilarity | str | None = None,
) -> StudyReport:
    """Everything that follows from the members' reports.

    Args:
        similarity: of the tuned models, or why it could not be computed; None: not asked for.

    Raises:
        InputError: no member has a report, or their reports have other numbers of layers.
    """
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    if not reports:
        raise InputError("no member of the study has a report")
    _check_depths(outcomes)
    repeats = repeats_of(outcomes)
    group_of = {one.name: group.name for group in repeats for one in group.members}
    members = [shown(outcome, group_of.get(outcome.name), request.policy) for outcome in outcomes]
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    layers = layers_of(members, repeats, [layer.name for layer in reports[0].layers])
    tests = paired_tests(outcomes, tasks)
    ranked = rankings(members, tasks, tests)
    return StudyReport(
        study_id=study_id,
        name=title,
        created_at=created_at,
        engine=StudyEngine(version=__version__, member_versions=sorted({one.engine.version for one in reports})),
        request=request,
        base=request.base.uri,
        tasks=tasks,
        members=members,
        best=_best(ranked, members) if len(tasks) == 1 else None,
        layers=layers,
        repeats=[_group(group) for group in repeats],
        rankings=ranked,
        paired_tests=tests,
        similarity=None if isinstance(similarity, str) else similarity,
        freezing=freezing(outcomes),
        lora=lora(outcomes),
        training=list(_curves(outcomes)),
        warnings=[*_warnings(outcomes, tasks, repeats), *_of_similarity(similarity)],
    )


def _check_depths(outcomes: Sequence[Outcome]) -> None:
    depths = {outcome.name: len(outcome.report.layers) for outcome in outcomes if outcome.report is not None}
    if len(set(depths.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in depths.items())
        raise InputError(f"the members' reports have different numbers of layers: {told}")


def _best(ranked: Sequence[TaskRanking], members: Sequence[StudyReportMember]) -> StudyReportMember | None:
    return next((member for member in members if member.name == ranked[0].best), None)


def _group(group: Repeats) -> RepeatGroup:
    names = [one.name for one in group.members]
    return RepeatGroup(name=group.name, task=group.task, recipe=group.recipe if group.named else None, members=names)


def _curves(outcomes: Sequence[Outcome]) -> Iterator[StudyCurve]:
    """Of fine-tunes with snapshots, and of tuned checkpoints that are snapshots of a run."""
    runs: dict[tuple[str, str], dict[int, list[float]]] = {}
    for outcome in outcomes:
        if outcome.report is None:
            continue
        if outcome.report.trajectory is not None:
            found = outcome.report.trajectory
            yield StudyCurve(run=outcome.name, task=outcome.task, steps=found.steps, drift=found.drift)
        snapshot = outcome.member.snapshot
        if snapshot is not None:
            drift = [layer.drift for layer in outcome.report.layers]
            runs.setdefault((snapshot.run, outcome.task), {})[snapshot.step] = drift
    for (run, task), by_step in runs.items():
        steps = sorted(by_step)
        yield StudyCurve(run=run, task=task, steps=steps, drift=[by_step[step] for step in steps])


def _warnings(outcomes: Sequence[Outcome], tasks: Sequence[str], repeats: Sequence[Repeats]) -> Iterator[StudyWarning]:
    missing = [outcome.name for outcome in outcomes if outcome.report is None]
    if missing:
        told = ", ".join(missing)
        yield StudyWarning(
            code="members_missing",
            message=f"{len(missing)} of {len(outcomes)} members have no report: {told}. Everything else covers "
            "the others; submit the study again to retry these",
        )
    known = [(outcome, outcome.report) for outcome in outcomes if outcome.report is not None]
    if len({_texts(outcome) for outcome, _ in known}) > 1:
        yield StudyWarning(
            code="drift_on_other_texts",
            message="members were compared with the base on different texts: differences of drift between them are "
            "of the models and of the texts together",
        )
    for task in tasks:
        if len({_texts(outcome) for outcome, _ in known if outcome.task == task}) > 1:
            yield StudyWarning(
                code="metrics_on_other_texts",
                message=f"members of task {task} were evaluated on different texts: their ranking depends on the texts",
            )
    settings = sorted({name for _, report in known for name in unlike_settings(known[0][1], report)} - _OF_MEMBERS)
    if settings:
        yield StudyWarning(
            code="settings_differ", message=f"members were not measured alike: {', '.join(settings)} differ"
        )
    yield from _of_repeats(repeats)


def _of_similarity(similarity: StudySimilarity | str | None) -> Iterator[StudyWarning]:
    if isinstance(similarity, str):
        message = f"the tuned models were not compared with one another: {similarity}"
        yield StudyWarning(code="similarity_not_computed", message=message)


_OF_MEMBERS = {"seed", "finetune", *(f"dataset.{name}" for name in ("text_column", "text_pair_column", "label_column"))}
"""Settings that members of one study may have each of its own."""


def _of_repeats(repeats: Sequence[Repeats]) -> Iterator[StudyWarning]:
    degrees = sum(max(0, sum(one.report is not None for one in group.members) - 1) for group in repeats)
    if 0 < degrees < FEW_DEGREES:
        yield StudyWarning(
            code="few_repeats",
            message=f"the spread over seeds rests on {degrees} degree{'s' if degrees > 1 else ''} of freedom: repeat "
            "more fine-tunes with other seeds",
        )


def _texts(outcome: Outcome) -> object:
    """What tells which texts a member was compared on: themselves where they are known, else what they follow from."""
    if outcome.scores is not None:
        return frozenset(outcome.scores.texts)
    report = outcome.report
    return None if report is None else (report.dataset.sha256, report.dataset.analysed_texts, outcome.request.seed)
