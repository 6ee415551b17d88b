"""Layers over all members: general for which tasks, and how much of their drift is seeds' and how much tasks'."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from layerdrift.contract.report import Measured
from layerdrift.contract.study_report import Generality, StudyLayer, StudyReportMember
from workers.analysis.variance import Between, Within, between, within
from workers.studies.repeats import Repeats

NO_REPEATS = (
    "no two members with a report differ by their seed alone, or their drift is the same; add members that differ by "
    "seed alone, or set repeat_of"
)
ONE_TASK = (
    "no recipe has two repeats in each of two tasks; add seeds, or give checkpoints of two tasks the same repeat_of"
)


def layers_of(
    members: Sequence[StudyReportMember], repeats: Sequence[Repeats], names: Sequence[str]
) -> list[StudyLayer]:
    """Every layer; `names` are the layers'."""
    by_name = {member.name: member for member in members if member.layers}
    tasks = len({member.task for member in members})
    return [_layer(index, name, by_name, repeats, tasks) for index, name in enumerate(names)]


def _layer(
    index: int, name: str, members: Mapping[str, StudyReportMember], repeats: Sequence[Repeats], every: int
) -> StudyLayer:
    tasks: defaultdict[str, set[bool | None]] = defaultdict(set)
    for member in members.values():
        tasks[member.task].add(member.measured[index].general)
    general = [task for task, found in tasks.items() if found == {True}]
    changed = [task for task, found in tasks.items() if found == {False}]
    seeds, of_tasks = _spread(index, members, repeats)
    return StudyLayer(
        index=index,
        name=name,
        general=_generality(len(general), every),
        general_for=general,
        changed_for=changed,
        mixed_for=[task for task in tasks if task not in general and task not in changed],
        seed_sd=_seed_sd(seeds),
        reseeding=seeds.reseeding if seeds is not None else None,
        task_sd=Measured(value=of_tasks.sd) if of_tasks is not None else _undefined(seeds),
        task_share=_task_share(of_tasks, seeds),
        task_p=of_tasks.p if of_tasks is not None else None,
    )


def _seed_sd(found: Within | None) -> Measured:
    if found is None:
        return Measured(value=None, undefined=NO_REPEATS)
    return Measured(value=found.sd, low=found.interval.low, high=found.interval.high)


def _task_share(found: Between | None, seeds: Within | None) -> Measured:
    if found is None:
        return _undefined(seeds)
    return Measured(value=found.share, low=found.interval.low, high=found.interval.high)


def _undefined(seeds: Within | None) -> Measured:
    return Measured(value=None, undefined=NO_REPEATS if seeds is None else ONE_TASK)


def _generality(general: int, tasks: int) -> Generality:
    return "all" if general == tasks else "some" if general else "none"


def _spread(
    index: int, members: Mapping[str, StudyReportMember], repeats: Sequence[Repeats]
) -> tuple[Within | None, Between | None]:
    groups: list[list[float]] = []
    recipes: defaultdict[str, list[tuple[str, list[float]]]] = defaultdict(list)
    for group in repeats:
        drifts = _drifts(index, group, members)
        if len(drifts) > 1:
            groups.append(drifts)
            recipes[group.recipe].append((group.task, drifts))
    # two groups of one task differ by their data: they tell of seeds, not of tasks
    distinct = {
        recipe: [drifts for _, drifts in found]
        for recipe, found in recipes.items()
        if len({task for task, _ in found}) == len(found)
    }
    return within(groups), between(distinct)


def _drifts(index: int, group: Repeats, members: Mapping[str, StudyReportMember]) -> list[float]:
    found = (members[one.name].measured[index].drift.value for one in group.members if one.name in members)
    return [value for value in found if value is not None]
