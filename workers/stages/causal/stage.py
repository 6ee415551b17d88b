"""Stage `causal`: does the change matter to the outputs? Splices, grafts and, where asked, the freeze sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedModel

from layerdrift.contract.request import AnalysisRequest
from workers.models.device import best_device
from workers.models.loading import Headed, load_body
from workers.results.effects import Causal, LayerGraft, Recommendation
from workers.results.warnings import ReportWarning
from workers.stages.causal.grafting import base_weights, graft_costs, predicted_by_grafts
from workers.stages.causal.sweep import freeze_sweep
from workers.stages.common.context import PairContext
from workers.stages.common.evaluation import EvalSet
from workers.stages.common.progress import Spans
from workers.stages.compare.advice_blockers import unless_blocked
from workers.stages.compare.head_outputs import Evaluated, base_with_head, evaluable_model
from workers.stages.compare.outputs import class_names, common_order, known_targets
from workers.stages.compare.stage import Compared
from workers.stages.extract.extracted import Extracted
from workers.stages.sae.findings import Dictionaries, SaeResults
from workers.stages.sae.latents import promoted
from workers.stages.sae.splicing import SPLICE_TEXTS, SPLICE_TOKENS, Spliced, SplicedLoss, splices

SPLICES, GRAFTS, SWEEP = "autoencoders in the models", "grafts", "freeze sweep"
"""Spans of the progress."""


@dataclass(frozen=True)
class Effects:
    """What the stage found; `grafts` by layer; `spliced` where there are autoencoders and a head.

    promoted: by changed latent, the tokens that it promotes in a language model.
    """

    grafts: list[LayerGraft] | None
    spliced: Spliced | None
    promoted: list[list[str]] | None
    causal: Causal
    recommendation: Recommendation
    warnings: list[ReportWarning]


def measure_effects(
    context: PairContext, extracted: Extracted, compared: Compared, evaluated: Evaluated, trained: SaeResults | None
) -> Effects:
    """Asks the models about the texts that were compared.

    Raises:
        InputError: a checkpoint cannot be loaded with its head, or a retraining diverged.
    """
    request, resolved = context.request, context.resolved
    swept = request.analysis.freeze_sweep is not None
    spans = Spans(
        context.on_progress,
        {
            SPLICES: 4.0 if trained else 0.0,
            GRAFTS: 4.0 * request.analysis.grafts,
            SWEEP: 20.0 * swept,
        },
    )
    weights, warnings = base_weights(context)
    if weights is None and trained is None and not swept:
        return _without_models(compared, evaluated, warnings)
    tuned = evaluable_model(context.tuned, extracted.tokenization)[0]
    model = tuned.model if tuned else load_body(context.tuned.folder, "/tuned/uri", best_device())
    rows = resolved.split.analysed[: extracted.analysed]
    eval_set = EvalSet(extracted.tokenization, rows, tuned.kind if tuned else "classifier")
    spliced, tokens = None, None
    if tuned is not None and trained is not None:
        base = base_with_head(resolved, tuned)
        spliced = _spliced(context.part(spans.span(SPLICES)), trained.dictionaries, eval_set, base, tuned)
        if tuned.kind == "causal_lm":
            tokens = promoted(trained.latents, trained.dictionaries, tuned.model, extracted.tokenization.tokenizer)
    grafts, info = None, None
    if weights is not None:
        grafts, info = graft_costs(weights, model, eval_set, tuned is not None, spans.span(GRAFTS))
    del model, tuned
    causal = Causal(graft=info, splice=spliced.info if spliced else None)
    recommendation = compared.recommendation
    if info is not None and grafts is not None and any(drift > 0 for drift in compared.drift):
        recommendation = predicted_by_grafts(info, grafts) or recommendation
    if swept:
        sweep, recommendation = freeze_sweep(context.part(spans.span(SWEEP)), recommendation)
        causal = replace(causal, sweep=sweep)
    if any(drift > 0 for drift in compared.drift):
        recommendation = unless_blocked(recommendation, evaluated.blockers)
    return Effects(grafts, spliced, tokens, causal, recommendation, warnings)


def _without_models(compared: Compared, evaluated: Evaluated, warnings: list[ReportWarning]) -> Effects:
    """What stands where neither grafts nor splices nor a sweep were asked for, or can be made."""
    recommendation = compared.recommendation
    if any(drift > 0 for drift in compared.drift):
        recommendation = unless_blocked(recommendation, evaluated.blockers)
    return Effects(None, None, None, Causal(), recommendation, warnings)


def preliminary(request: AnalysisRequest, compared: Compared, evaluated: Evaluated) -> Effects:
    """What stands before the stage has run: no advice yet where grafts or a sweep may change it."""
    recommendation = compared.recommendation
    if any(drift > 0 for drift in compared.drift):
        recommendation = unless_blocked(recommendation, evaluated.blockers)
        if recommendation.basis != "none" and (request.analysis.grafts or request.analysis.freeze_sweep):
            evidence = "It follows once the stage causal has measured what the change means for the outputs."
            recommendation = Recommendation(freeze_first=0, basis="none", evidence=evidence)
    return Effects(None, None, None, Causal(), recommendation, [])


def _spliced(
    context: PairContext, dictionaries: Dictionaries, eval_set: EvalSet, base: Headed | None, tuned: Headed
) -> Spliced:
    """Both models where the base has a head of the same classes, else the tuned one alone."""
    if base is not None and tuned.kind == "classifier" and common_order(base, class_names(tuned.model)) is None:
        base = None
    asked = eval_set.first(SPLICE_TEXTS, SPLICE_TOKENS)

    def loss(model: PreTrainedModel) -> SplicedLoss:
        targets = known_targets(asked, model) if asked.kind == "classifier" else None
        return SplicedLoss(asked, model, targets)

    of_base = partial(loss, base.model) if base is not None else None
    return splices(context, dictionaries, of_base, partial(loss, tuned.model), len(asked.rows))
