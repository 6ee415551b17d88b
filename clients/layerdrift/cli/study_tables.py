"""What the commands for studies print for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.table import Table

from layerdrift.cli.tables import checks, plain
from layerdrift.contract.study import Study
from layerdrift.contract.study_policy import StudyVerdict
from layerdrift.contract.study_report import StudyReport
from layerdrift.render import sentences, study_sentences
from layerdrift.render.escaping import terminal
from layerdrift.render.verdict import SAID


def standing(study: Study) -> str:
    """How many members and trials stand how: `2 running, 6 queued`."""
    counts = Counter(one.status.value for one in study.awaited)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def studies(found: Sequence[Study]) -> Table | str:
    """A line for each; a sentence where there is none."""
    if not found:
        return "No studies. Run one with: layerdrift study run study.yaml"
    table = plain("study", "name", "status", "analyses", "created")
    for one in found:
        table.add_row(one.id, terminal(one.name), one.status, standing(one), f"{one.created_at:%Y-%m-%d %H:%M} UTC")
    return table


def states(study: Study) -> Table:
    """A line for each member and trial."""
    table = plain("member", "task", "analysis", "status", "done", "verdict", "error")
    for one in study.awaited:
        why = one.error.detail if one.error is not None else ""
        cells = (one.analysis_id, one.status.value, f"{one.fraction:.0%}", one.verdict or "", terminal(why))
        table.add_row(terminal(one.name), terminal(one.task), *cells)
    return table


def report(found: StudyReport) -> Iterator[Table | str]:
    """What the report says, with the tables of members and layers."""
    yield study_sentences.headline(found)
    yield _members(found)
    yield _layers(found)
    yield from (study_sentences.best(ranking) for ranking in found.rankings)
    yield from filter(
        None, (study_sentences.seeds(found), study_sentences.shared(found), study_sentences.freezing(found))
    )
    yield from study_sentences.trials(found)
    yield from (f"{warning.code}: {warning.message}" for warning in found.warnings)


def _members(found: StudyReport) -> Table:
    ranks = {one.name: one for ranking in found.rankings for one in ranking.members}
    table = plain("member", "task", "rank", "policy", "metric", "value", "mean drift", "front", "freeze first")
    for member in found.members:
        ranked = ranks.get(member.name)
        if ranked is None:
            table.add_row(
                terminal(member.name), terminal(member.task), "", f"no report: {terminal(member.error or '')}"
            )
            continue
        metric = member.metric
        table.add_row(
            terminal(member.name),
            terminal(member.task),
            str(ranked.rank),
            member.decision or "—",
            study_sentences.metric(metric.name) if metric else "—",
            sentences.number(metric.value.value) if metric else "—",
            sentences.number(member.mean_drift, 4),
            "yes" if ranked.on_front else "no",
            "—" if member.freeze_first is None else str(member.freeze_first),
        )
    return table


def _layers(found: StudyReport) -> Table:
    """Drift by layer, a column for each task: the mean of its members."""
    table = plain("layer", *(terminal(task) for task in found.tasks), "general for", "seeds, SD", "tasks' share")
    for layer in found.layers:
        means = [_mean(found, task, layer.index) for task in found.tasks]
        table.add_row(
            f"{layer.index} {layer.name}",
            *(sentences.number(mean, 4) for mean in means),
            terminal(", ".join(layer.general_for)) or "—",
            sentences.number(layer.seed_sd.value, 4),
            sentences.number(layer.task_share.value, 2),
        )
    return table


def _mean(found: StudyReport, task: str, layer: int) -> float | None:
    """The mean drift of a task's members at a layer."""
    drifts = [
        drift
        for member in found.members
        if member.task == task and member.layers and (drift := member.measured[layer].drift.value) is not None
    ]
    return sum(drifts) / len(drifts) if drifts else None


def verdict(found: StudyVerdict) -> Table:
    """A line for each check, and the decision above."""
    return checks(found.decision, SAID[found.decision], found.checks)
