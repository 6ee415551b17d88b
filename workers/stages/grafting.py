"""Grafts: parts of the base model in the tuned one's place, what each costs, and what that says about freezing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from layerdrift.contract.errors import InputError
from layerdrift.contract.report import GraftInfo, LayerGraft, Measured, Recommendation, ReportWarning
from layerdrift.contract.request import AnalysisRequest
from workers.models.device import best_device
from workers.models.grafts import BaseWeights
from workers.models.loading import body_of, load_body
from workers.models.structure import shares_blocks
from workers.stages.answers import Judge, Measure, Questions, Scores, grouped
from workers.stages.intervals import ratio
from workers.stages.outputs import known_targets, measured
from workers.stages.resolve import Resolved
from workers.stages.sweep import NOT_RETRAINED
from workers.stages.tick import Tick

GRAFT_TEXTS = 500
"""Texts that every graft is judged on: one evaluation for each layer, twice."""


def base_weights(
    request: AnalysisRequest, resolved: Resolved, folder: Path
) -> tuple[BaseWeights | None, list[ReportWarning]]:
    """The base model's parts for grafts; none where they are not asked for, or where its blocks share their weights."""
    if not request.analysis.grafts:
        return None, []
    body = load_body(resolved.base.folder, "/base/uri", best_device())
    if not shares_blocks(body):
        try:
            return BaseWeights(body, folder / "grafts"), []
        except InputError as error:
            message = f"{error.detail.splitlines()[0]}; grafts and advice on freezing are left out"
            return None, [ReportWarning(code="no_grafts", message=message)]
    message = (
        f"the blocks of {type(body).__name__} share their weights: no block can be exchanged or frozen without the "
        "others, so grafts and advice on freezing are left out"
    )
    return None, [ReportWarning(code="shared_blocks", message=message)]


def graft_costs(
    weights: BaseWeights, model: PreTrainedModel, questions: Questions, headed: bool, tick: Tick
) -> tuple[list[LayerGraft], GraftInfo]:
    """The base model's layers 0..k, and each block of its alone, in the tuned model."""
    asked = replace(questions, rows=questions.rows[:GRAFT_TEXTS])
    targets = known_targets(asked, model) if headed and asked.kind == "classifier" else None
    judge_ = Judge(asked, headed, targets)
    whole = judge_.scores(model)
    ungrafted = measured(whole, judge_.measure)
    body, layers = body_of(model), len(weights.prefix)

    def with_grafted(names: list[str]) -> Scores:
        with weights.grafted(body, names):
            return judge_.scores(model)

    found = []
    for layer in range(layers):
        prefix = with_grafted(weights.prefix[layer])
        tick((layer + 0.5) / layers, f"base layers 0 to {layer} in the tuned model")
        block = with_grafted(weights.block[layer]) if layer else prefix
        tick((layer + 1) / layers, f"base block {layer} in the tuned model")
        found.append(
            LayerGraft(
                prefix=measured(prefix, judge_.measure),
                block=measured(block, judge_.measure),
                prefix_cost=_cost(whole, prefix, judge_.measure),
            )
        )
    if ungrafted.value is None:
        raise ValueError("the tuned model could not be judged")
    return found, GraftInfo(measure=judge_.measure, ungrafted=ungrafted.value, examples=len(asked.rows))


def _cost(whole: Scores, grafted: Scores, measure: Measure) -> Measured:
    """What a graft costs on the same texts: share of right answers lost, relative rise of perplexity, else itself."""
    if measure == "accuracy":
        return ratio(*grouped(Scores(whole.sums - grafted.sums, whole.counts)))
    if measure == "perplexity":
        return ratio(*grouped(Scores(grafted.sums - whole.sums, whole.counts)), math.expm1)
    return measured(grafted, measure)


TOLERATED: dict[Measure, float] = {"accuracy": 0.005, "perplexity": 0.01, "kl": 0.01}
"""What a graft may cost and still count as harmless: a share of the texts, a relative increase, bits."""


def predicted_by_grafts(info: GraftInfo, grafts: list[LayerGraft]) -> Recommendation | None:
    """The most of the base model's bottom whose graft is not seen to do harm; None where answers are not judged.

    Harm is seen where the lower end of the cost's 95 % interval is above what is tolerated.

    Args:
        grafts: by layer, 0 to L.
    """
    tolerated = TOLERATED.get(info.measure)
    if tolerated is None:
        return None
    costs = [graft.prefix_cost for graft in grafts]
    kept = -1
    blocks = len(grafts) - 1
    while kept + 1 < len(costs) and _low(costs[kept + 1]) <= tolerated:
        kept += 1
    if kept == blocks:
        evidence = (
            "With all of the base model's blocks in its place the tuned model answers as well on these texts, so they "
            "do not show what was learnt. Compare the models on texts of the task."
        )
        return Recommendation(freeze_first=0, basis="none", evidence=evidence)
    looked_at = grafts[kept if kept > 0 else kept + 1]
    change = f"{info.measure} goes from {info.ungrafted:.3f} to {looked_at.prefix.value or 0.0:.3f}"
    if looked_at.prefix_cost.low is not None and looked_at.prefix_cost.high is not None:
        change += f" (cost {looked_at.prefix_cost.low:.3f} to {looked_at.prefix_cost.high:.3f}, 95 %)"
    bottom = f"first {kept} of {blocks} blocks" if kept > 0 else f"first of {blocks} blocks"
    bottom = "embeddings" if kept < 0 else f"embeddings and {bottom}"
    found = f"With the base model's {bottom} in its place the tuned model's {change} on {info.examples} texts, "
    if kept < 1:
        found += "more than chance gives: what was learnt there matters to the answers."
    else:
        found += f"which is not beyond chance and {tolerated:g}; with one block more it is."
    evidence = f"{found} {NOT_RETRAINED}"
    return Recommendation(freeze_first=max(kept, 0), basis="predicted", evidence=evidence)


def _low(cost: Measured) -> float:
    if cost.value is None:
        return math.inf
    return cost.value if cost.low is None else cost.low
