"""A study's report in sentences, for the page, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from layerdrift.contract.study_report import Generality, LoraTrialResult, StudyReport, StudySimilarity, TaskRanking
from layerdrift.render.sentences import number


def headline(report: StudyReport) -> str:
    """How many members and tasks there are, and which layers are general for how many tasks."""
    members, tasks = len(report.members), len(report.tasks)
    missing = sum(member.layers is None for member in report.members)
    without = f" ({missing} without a report)" if missing else ""
    begun = f"{members} fine-tunes{without} of one base for {tasks} task{'s' if tasks != 1 else ''}."
    if tasks == 1:
        general = _layers(report, "all")
        return f"{begun} General in all of them: {general or 'no layer'}."
    told = [
        f"general for {words}: {found or 'no layer'}"
        for words, found in (
            ("all tasks", _layers(report, "all")),
            ("some", _layers(report, "some")),
            ("none", _layers(report, "none")),
        )
    ]
    return f"{begun} {'; '.join(told).capitalize()}."


def _layers(report: StudyReport, kind: Generality) -> str:
    return spans([layer.index for layer in report.layers if layer.general == kind])


def spans(indices: Sequence[int]) -> str:
    """`layers 0 to 3, 5`; empty for none."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    told = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    return f"layer{'s' if len(indices) > 1 else ''} {', '.join(told)}" if told else ""


def seeds(report: StudyReport) -> str | None:
    """What a difference of drift is worth; None without repeats."""
    known = [layer for layer in report.layers[1:] if layer.reseeding is not None]
    if not known:
        return None
    largest = max(known, key=lambda layer: layer.reseeding or 0.0)
    by_tasks = [layer.index for layer in known if layer.task_p is not None and layer.task_p <= 0.05]
    told = (
        f"Two fine-tunes of one recipe differ in drift by up to {number(largest.reseeding)} (layer {largest.index}) "
        "through their seeds alone, in 95 % of cases."
    )
    if all(layer.task_p is None for layer in known):
        return told
    apart = spans(by_tasks)
    return (
        f"{told} Drift differs between tasks, texts included, at {apart} (F test, p ≤ 0.05)."
        if apart
        else (f"{told} No layer shows a difference between tasks beyond that between seeds (F test, p ≤ 0.05).")
    )


def shared(report: StudyReport) -> str | None:
    """How alike the changes of members of one task and of two are, at the last layer; None where that is not known."""
    found = report.similarity
    if found is None:
        return None
    last = found.layers[-1].index
    told = [
        f"of {words} {number(mean, 2)}"
        for words, mean in zip(("one task", "two tasks"), mean_cosines(report, found, last), strict=True)
        if mean is not None
    ]
    return f"Mean cosine of the changes of two members at layer {last}: {', '.join(told)}." if told else None


def mean_cosines(report: StudyReport, found: StudySimilarity, layer: int) -> tuple[float | None, float | None]:
    """Mean cosine of the changes of two members of one task, and of two tasks; None where there are no such two."""
    tasks = {member.name: member.task for member in report.members}
    cosines: dict[bool, list[float]] = {True: [], False: []}
    for row, one in enumerate(found.members):
        for column, other in enumerate(found.members[:row]):
            value = found.layers[layer].change_cosine[row][column]
            if value is not None:
                cosines[tasks[one] == tasks[other]].append(value)
    within, across = (sum(some) / len(some) if some else None for some in (cosines[True], cosines[False]))
    return within, across


def freezing(report: StudyReport) -> str | None:
    """How many blocks may be frozen for every member; None where none has advice."""
    found = report.freezing
    if found is None:
        return None
    blocks = "block" if found.depth == 1 else f"{found.depth} blocks"
    more = [f"{one.name} {one.own}" for one in found.members if one.forgone]
    many = f"the smallest own advice of {len(found.members)} members"
    if found.without_advice:
        many += f"; {len(found.without_advice)} have none"
    told = f"Freeze the embeddings and the first {blocks}: {many}." if found.depth else f"Freeze nothing: {many}."
    return f"{told} Alone, these could freeze more: {', '.join(more)}." if more else told


def trials(report: StudyReport) -> list[str]:
    """What LoRA reaches on which layers, for each task that it was tried for."""
    tried = report.lora.trials if report.lora is not None else []
    return [
        _tried(task, [one for one in tried if one.task == task]) for task in dict.fromkeys(one.task for one in tried)
    ]


def _tried(task: str, of_task: Sequence[LoraTrialResult]) -> str:
    where = {"chosen": "the {} that changed most", "all": "all {}", "random": "{} random ones"}
    told = [
        f"{number(one.metric.value.value)} on {where[one.kind].format(len(one.layers))}"
        if one.metric is not None
        else f"{one.error or 'no metric'} on {where[one.kind].format(len(one.layers))}"
        for one in of_task
    ]
    measured = next((f", {metric(one.metric.name)}" for one in of_task if one.metric is not None), "")
    return f"{task}: LoRA on some layers{measured}: {'; '.join(told)}. One seed each."


def best(ranking: TaskRanking) -> str:
    """Which member of a task comes first."""
    first = [one for one in ranking.members if one.rank == 1]
    if ranking.best is not None:
        value = first[0].metric
        measured = f", {metric(ranking.metric)} {number(value)}" if ranking.metric and value is not None else ""
        alike = [one.name for one in ranking.members if one.differs_from_first is False and one.decision != "fail"]
        doubt = f" A paired test does not tell it from {', '.join(alike)}." if alike else ""
        return f"{ranking.task}: {ranking.best} comes first{measured}.{doubt}"
    if first[0].decision == "fail":
        return f"{ranking.task}: the policy passes no member."
    return f"{ranking.task}: {len(first)} members come first together ({', '.join(one.name for one in first)})."


def metric(name: str | None) -> str:
    """A metric's name for people."""
    return (name or "").replace("_", " ")
