"""Advice that holds for all members: how many blocks to freeze, and which layers a low-rank adapter should reach."""

from __future__ import annotations

from collections.abc import Sequence

from layerdrift.contract.report import Layer, Measured, Report
from layerdrift.contract.study_report import FreezingMember, LoraLayer, StudyFreezing, StudyLora
from workers.studies.outcomes import Outcome

HELD = 0.9
"""Share of a change that a rank must hold."""

_PARTS = ("attention", "mlp")


def freezing(outcomes: Sequence[Outcome]) -> StudyFreezing | None:
    """The depth that no member's own advice goes below, and what it means for each; None where none has advice."""
    reports = [(outcome.name, outcome.report) for outcome in outcomes if outcome.report is not None]
    advised = [(name, report) for name, report in reports if report.recommendation.basis != "none"]
    if not advised:
        return None
    depth = min(report.recommendation.freeze_first for _, report in advised)
    return StudyFreezing(
        depth=depth,
        members=[_frozen(name, report, depth) for name, report in advised],
        without_advice=[name for name, report in reports if report.recommendation.basis == "none"],
    )


def _frozen(name: str, report: Report, depth: int) -> FreezingMember:
    own = report.recommendation.freeze_first
    return FreezingMember(
        name=name,
        own=own,
        cost=_cost(report, depth),
        own_cost=_cost(report, own),
        forgone=own - depth,
    )


def _cost(report: Report, depth: int) -> Measured | None:
    """Of the base's layers up to a depth; frozen at depth 0 is nothing, which costs nothing."""
    graft = report.layers[depth].graft
    if graft is None:
        return None
    return Measured(value=0.0) if depth == 0 else graft.prefix_cost


def lora(outcomes: Sequence[Outcome]) -> StudyLora | None:
    """Where the weights of members changed; None where none was tuned in full. An adapter's rank is its own."""
    full = [
        (outcome.name, outcome.report)
        for outcome in outcomes
        if outcome.report is not None
        and not outcome.adapter
        and (outcome.request.finetune is None or outcome.request.finetune.method == "full")
        and any(_known(layer) for layer in outcome.report.layers)
    ]
    if not full:
        return None
    count = len(full[0][1].layers)
    found = [_adapted(index, [report.layers[index] for _, report in full]) for index in range(count)]
    return StudyLora(members=[name for name, _ in full], layers=[layer for layer in found if layer is not None])


def _known(layer: Layer) -> bool:
    return any(layer.weights[part].top8_share is not None for part in _PARTS if part in layer.weights)


def _adapted(index: int, layers: Sequence[Layer]) -> LoraLayer | None:
    known = [layer for layer in layers if _known(layer)]
    if not known:
        return None
    parts = [layer.weights[part] for layer in known for part in _PARTS if part in layer.weights]
    top8 = min(part.top8_share for part in parts if part.top8_share is not None)
    top16 = min(part.top16_share for part in parts if part.top16_share is not None)
    return LoraLayer(
        layer=index,
        change=sum(_largest(layer) for layer in known) / len(layers),
        rank=8 if top8 >= HELD else 16 if top16 >= HELD else None,
        top8=top8,
        top16=top16,
    )


def _largest(layer: Layer) -> float:
    return max(layer.weights[part].relative_frobenius or 0.0 for part in _PARTS if part in layer.weights)
