"""What a study says of the paper's claims: do early layers stay general, middle ones change gradually, late ones most?

Each claim is judged for every task and method, over its seeds. Thirds are of the blocks: of 6, layers 1 and 2 are
early, 3 and 4 middle, 5 and 6 late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.stats import t

from layerdrift.contract.study_report import StudyReport, StudyReportMember

LARGEST_STEP = 0.5
"""Share of the whole rise that one layer may have where the change is called gradual."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % interval of the t distribution; NaN ends with one seed."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        mean, count = sum(values) / len(values), len(values)
        if count < 2:
            return cls(mean, math.nan, math.nan)
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
        half = float(t.ppf(0.975, count - 1)) * error
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Judged:
    """The claims for one task and method.

    early, late: mean drift of these layers. rise: late less early. largest_step: largest rise from one layer to the
    next, as a share of the rise from the embeddings to the last layer.
    early_general: in every seed all early layers are general, with their intervals. gradual: in every seed drift falls
    nowhere in the middle by more than seeds explain, and no step is larger than LARGEST_STEP. late_most: the interval
    of the rise is above what seeds explain.
    """

    task: str
    method: str
    seeds: int
    early: Mean
    late: Mean
    rise: Mean
    largest_step: Mean
    early_general: bool
    gradual: bool
    late_most: bool


def judged(report: StudyReport) -> list[Judged]:
    """Every task and method that has a member with a report, in the order of the members."""
    groups: dict[tuple[str, str], list[StudyReportMember]] = {}
    for member in report.members:
        if member.layers:
            groups.setdefault((member.task, member.method or "checkpoint"), []).append(member)
    return [_judged(report, task, method, members) for (task, method), members in groups.items()]


def _judged(report: StudyReport, task: str, method: str, members: Sequence[StudyReportMember]) -> Judged:
    last = report.layers[-1].index
    early, middle, late = thirds(last)
    curves = [_drift(member) for member in members]
    explained = max((layer.reseeding or 0.0 for layer in report.layers), default=0.0)
    steps = [[after - before for before, after in pairwise(curve)] for curve in curves]
    rises = [max(curve[-1] - curve[0], 1e-9) for curve in curves]
    largest = [max(step) / rise for step, rise in zip(steps, rises, strict=True)]
    rise = Mean.of([_mean(curve, late) - _mean(curve, early) for curve in curves])
    return Judged(
        task=task,
        method=method,
        seeds=len(members),
        early=Mean.of([_mean(curve, early) for curve in curves]),
        late=Mean.of([_mean(curve, late) for curve in curves]),
        rise=rise,
        largest_step=Mean.of(largest),
        early_general=all(member.measured[index].general for member in members for index in early),
        gradual=max(largest) <= LARGEST_STEP
        and all(step[index - 1] >= -explained for step in steps for index in middle),
        late_most=rise.low > explained,
    )


def _drift(member: StudyReportMember) -> list[float]:
    """By layer; ValueError where a layer has none."""
    found = [layer.drift.value for layer in member.measured]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        raise ValueError(f"{member.name} has layers without drift")
    return known


def thirds(last: int) -> tuple[range, range, range]:
    """Early, middle and late layers of a model of so many blocks."""
    edges = [1 + round(part * last / 3) for part in range(4)]
    return range(edges[0], edges[1]), range(edges[1], edges[2]), range(edges[2], edges[3])


def _mean(curve: Sequence[float], layers: range) -> float:
    return sum(curve[index] for index in layers) / len(layers)
