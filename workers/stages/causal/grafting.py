"""Grafts: parts of the base model in the tuned one's place, what each costs, and what that says about freezing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile

from transformers import PreTrainedModel

from layerdrift.contract.errors import InputError
from workers.models.device import best_device
from workers.models.grafts import BaseWeights, untied
from workers.models.loading import body_of, load_body
from workers.models.structure import shares_blocks
from workers.results.effects import GraftInfo, LayerGraft, Recommendation
from workers.results.measured import Measured
from workers.results.warnings import ReportWarning
from workers.stages.causal.graft_scores import GRAFT_TEXTS, GRAFT_TOKENS, GraftScores
from workers.stages.causal.sweep import NOT_RETRAINED
from workers.stages.common.context import PairContext
from workers.stages.common.evaluation import EvalSet, Evaluator, Measure, Scores
from workers.stages.common.known_states import KnownStates, above
from workers.stages.common.progress import OnProgress
from workers.stages.compare.outputs import known_targets


def base_weights(context: PairContext) -> tuple[BaseWeights | None, list[ReportWarning]]:
    """The base model's parts for grafts; none where they are not asked for, or where its blocks share their weights."""
    if not context.request.analysis.grafts:
        return None, []
    body = load_body(context.resolved.base.folder, "/base/uri", best_device())
    if not shares_blocks(body):
        try:
            return BaseWeights(body, context.folder / "grafts"), []
        except InputError as error:
            message = f"{error.detail.splitlines()[0]}; grafts and advice on freezing are omitted"
            return None, [ReportWarning(code="no_grafts", message=message)]
    message = (
        f"the blocks of {type(body).__name__} share their weights: no block can be replaced or frozen without the "
        "others, so grafts and advice on freezing are omitted"
    )
    return None, [ReportWarning(code="shared_blocks", message=message)]


def graft_scores(
    weights: BaseWeights, model: PreTrainedModel, eval_set: EvalSet, headed: bool, on_progress: OnProgress
) -> GraftScores:
    """How the tuned model answers with the base model's layers 0..k, and each block of its alone, in it.

    A head that is tied to the embeddings is untied first: it is the tuned model's, and stays. Parts that are the same
    in both models are not asked about.
    """
    if headed:
        untied(model)
    asked = eval_set.first(GRAFT_TEXTS, GRAFT_TOKENS)
    targets = known_targets(asked, model) if headed and asked.kind == "classifier" else None
    evaluator = Evaluator(asked, headed, targets)
    whole = evaluator.scores(model)
    body, layers = body_of(model), len(weights.prefix)

    def with_grafted(names: list[str], known: KnownStates | None, layer: int) -> Scores:
        if weights.same(body, names):
            return whole
        with weights.grafted(body, names):
            return evaluator.scores(model, above(known, layer, model, asked))

    def prefixes() -> Iterator[Scores]:
        with weights.grafted(body, weights.prefix[-1]):
            of_base = KnownStates.of(model, asked) if headed else None
        for layer, names in enumerate(weights.prefix):
            yield with_grafted(names, of_base, layer)
            on_progress((layer + 1) / layers / 2, f"base layers 0 to {layer} in the tuned model")

    def blocks() -> Iterator[Scores]:
        own = KnownStates.of(model, asked) if headed else None
        for layer, names in enumerate(weights.block[1:], start=1):
            yield with_grafted(names, own, layer - 1)
            on_progress((layers + layer + 1) / layers / 2, f"base block {layer} in the tuned model")

    of_prefixes = list(prefixes())  # one after the other: of each, the states at all layers are in memory
    return GraftScores(asked, evaluator.measure, whole, of_prefixes, [of_prefixes[0], *blocks()])


TOLERATED: dict[Measure, float] = {"accuracy": 0.005, "perplexity": 0.01, "kl": 0.01}
"""What a graft may cost and still count as harmless: a share of the texts, a relative increase, bits."""


def predicted_by_grafts(info: GraftInfo, grafts: list[LayerGraft]) -> Recommendation | None:
    """The most of the base model's bottom whose graft is shown to do no harm; None where answers are not judged.

    That is shown where the upper end of the cost's 95 % interval is within what is tolerated. Layers are judged from
    the bottom up, and the first of which it is not shown ends it: few texts make the advice cautious, not bold.

    Args:
        grafts: by layer, 0 to L.
    """
    tolerated = TOLERATED.get(info.measure)
    if tolerated is None:
        return None
    harmless = list(takewhile(lambda graft: _high(graft.prefix_cost) <= tolerated, grafts))
    kept, blocks = len(harmless) - 1, len(grafts) - 1
    if all(_low(graft.prefix_cost) <= tolerated for graft in grafts):
        evidence = (
            f"With any number of the base model's layers swapped in, the outputs on these {info.examples} texts do "
            "not get measurably worse, so they do not show what was learned. Compare the models on more texts, and "
            "on texts of the task."
        )
        return Recommendation(freeze_first=0, basis="none", evidence=evidence)
    found = ""
    if kept > 0:
        found = f"With {_bottom(kept, blocks)}, {_told(info, grafts[kept])}: this is harmless. "
    after = grafts[kept + 1]
    found += f"With {_bottom(kept + 1, blocks)}, {_told(info, after)}: "
    if _low(after.prefix_cost) > tolerated:
        found += "what was learned there matters to the outputs."
    else:
        found += (
            f"whether this exceeds {tolerated:g} is unclear. Use more texts, or analysis.freeze_sweep, to find out."
        )
    return Recommendation(freeze_first=max(kept, 0), basis="predicted", evidence=f"{found} {NOT_RETRAINED}")


def _bottom(layer: int, blocks: int) -> str:
    """The base model's layers 0 to `layer` in words."""
    if layer == 0:
        return "the base model's embeddings swapped in"
    return f"the base model's embeddings and first {layer} of {blocks} blocks swapped in"


def _told(info: GraftInfo, graft: LayerGraft) -> str:
    cost = graft.prefix_cost
    told = f"the tuned model's {info.measure} goes from {info.ungrafted:.3f} to {graft.prefix.value or 0.0:.3f}"
    if cost.low is not None and cost.high is not None:
        told += f" (cost {cost.low:.3f} to {cost.high:.3f}, 95 %)"
    return f"{told} on {info.examples} texts"


def _low(cost: Measured) -> float:
    if cost.value is None:
        return math.inf
    return cost.value if cost.low is None else cost.low


def _high(cost: Measured) -> float:
    """Without an interval nothing is shown, but for a cost of exactly 0 of parts that are the same."""
    if cost.value is None or (cost.high is None and cost.value != 0):
        return math.inf
    return cost.value if cost.high is None else cost.high
