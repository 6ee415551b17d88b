"""Stage `causal`: does the change matter to the outputs? Splices, grafts and, where asked, the freeze sweep."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from backends.tables.reading import Row
from layerdrift.contract.request import AnalysisRequest
from workers.models.device import best_device
from workers.models.known_head import is_alone
from workers.models.loading import Headed, load_body
from workers.models.structure import NotBlockwise
from workers.results.effects import Causal, LayerGraft, Recommendation
from workers.results.warnings import ReportWarning
from workers.stages.causal.graft_scores import GraftScores
from workers.stages.causal.grafting import base_weights, graft_scores, predicted_by_grafts
from workers.stages.causal.layered_grafts import layered_graft_scores
from workers.stages.causal.sweep import freeze_sweep
from workers.stages.common.context import PairContext
from workers.stages.common.evaluation import EvalSet
from workers.stages.common.layered_pair import layered_pair
from workers.stages.common.progress import Spans
from workers.stages.compare.advice_blockers import unless_blocked
from workers.stages.compare.head_outputs import (
    Evaluated,
    asked_model,
    base_like,
    base_with_head,
    evaluable_model,
)
from workers.stages.compare.outputs import class_names, common_order, known_targets
from workers.stages.compare.stage import Compared
from workers.stages.extract.extracted import Extracted
from workers.stages.sae.findings import Dictionaries, SaeResults
from workers.stages.sae.latents import promoted
from workers.stages.sae.layered_splicing import LayeredLoss
from workers.stages.sae.splicing import SPLICE_TEXTS, SPLICE_TOKENS, Spliced, SplicedLoss, splices

logger = logging.getLogger(__name__)

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
    if not request.analysis.grafts and trained is None and not swept:
        return _without_models(compared, evaluated)
    rows = resolved.split.analysed[: extracted.analysed]
    found = _asked_models(_Asked(context, extracted, rows, trained, spans))
    grafts, info = found.grafts.costs() if found.grafts is not None else (None, None)
    causal = Causal(graft=info, splice=found.spliced.info if found.spliced else None)
    recommendation = compared.recommendation
    if info is not None and grafts is not None and any(drift > 0 for drift in compared.drift):
        recommendation = predicted_by_grafts(info, grafts) or recommendation
    if swept:
        sweep, recommendation = freeze_sweep(context.part(spans.span(SWEEP)), recommendation)
        causal = replace(causal, sweep=sweep)
    if any(drift > 0 for drift in compared.drift):
        recommendation = unless_blocked(recommendation, evaluated.blockers)
    return Effects(grafts, found.spliced, found.promoted, causal, recommendation, found.warnings)


@dataclass(frozen=True)
class _Asked:
    """What models are asked about: `rows` with a head, and autoencoders where there are any."""

    context: PairContext
    extracted: Extracted
    rows: list[Row]
    trained: SaeResults | None
    spans: Spans

    def eval_set(self, tuned: Headed | None) -> EvalSet:
        return EvalSet(self.extracted.tokenization, self.rows, tuned.kind if tuned else "classifier")

    def promoted(self, tuned: Headed) -> list[list[str]] | None:
        """By changed latent, the tokens that it promotes in a language model."""
        if self.trained is None or tuned.kind != "causal_lm":
            return None
        tokenizer = self.extracted.tokenization.tokenizer
        return promoted(self.trained.latents, self.trained.dictionaries, tuned.model, tokenizer)


@dataclass(frozen=True)
class _Found:
    """What the models answered."""

    grafts: GraftScores | None
    spliced: Spliced | None
    promoted: list[list[str]] | None
    warnings: list[ReportWarning]


def _asked_models(asked: _Asked) -> _Found:
    """Block by block where the models ran so and a block hands on no more than its states, else whole."""
    if asked.extracted.execution.mode == "layers":
        try:
            return _asked_in_layers(asked)
        except NotBlockwise as error:
            logger.warning("the models are asked whole: %s", error)
    return _asked_whole(asked)


def _asked_in_layers(asked: _Asked) -> _Found:
    """One block of each model is in memory, and their heads.

    Raises:
        NotBlockwise: the head does not answer by itself, or a block hands on more than its states.
    """
    context, extracted, resolved = asked.context, asked.extracted, asked.context.resolved
    tuned = asked_model(context.tuned, resolved.base, extracted)[0]
    if tuned is not None and not is_alone(tuned.model):
        raise NotBlockwise(f"the head of {type(tuned.model).__name__} reads more than the states of its last layer")
    pair = layered_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length)
    pair = replace(pair, tokenization=extracted.tokenization)
    eval_set, grafts, spliced, tokens = asked.eval_set(tuned), None, None, None
    if tuned is not None and asked.trained is not None:
        base, texts = _comparable(base_like(context, tuned, extracted), tuned), eval_set.first(*SPLICED)
        of_base = None
        if base is not None:
            of_base = partial(LayeredLoss, texts, _targets(texts, base), pair.base, base.model, pair.base.block)
        of_tuned = partial(LayeredLoss, texts, _targets(texts, tuned), pair.tuned, tuned.model, pair.block)
        part = context.part(asked.spans.span(SPLICES))
        spliced = splices(part, asked.trained.dictionaries, texts, of_base, of_tuned)
        tokens = asked.promoted(tuned)
    if context.request.analysis.grafts:
        grafts = layered_graft_scores(pair, tuned, eval_set, asked.spans.span(GRAFTS))
    return _Found(grafts, spliced, tokens, [])


def _asked_whole(asked: _Asked) -> _Found:
    """Both models are in memory."""
    context, resolved = asked.context, asked.context.resolved
    weights, warnings = base_weights(context)
    if weights is None and asked.trained is None:
        return _Found(None, None, None, warnings)
    tuned = evaluable_model(context.tuned, asked.extracted.tokenization)[0]
    model = tuned.model if tuned else load_body(context.tuned.folder, "/tuned/uri", best_device())
    eval_set, grafts, spliced, tokens = asked.eval_set(tuned), None, None, None
    if tuned is not None and asked.trained is not None:
        base = base_with_head(resolved, tuned)
        part = context.part(asked.spans.span(SPLICES))
        spliced = _spliced(part, asked.trained.dictionaries, eval_set, base, tuned)
        tokens = asked.promoted(tuned)
    if weights is not None:
        grafts = graft_scores(weights, model, eval_set, tuned is not None, asked.spans.span(GRAFTS))
    return _Found(grafts, spliced, tokens, warnings)


def _without_models(compared: Compared, evaluated: Evaluated) -> Effects:
    """What stands where neither grafts nor splices nor a sweep were asked for, or can be made."""
    recommendation = compared.recommendation
    if any(drift > 0 for drift in compared.drift):
        recommendation = unless_blocked(recommendation, evaluated.blockers)
    return Effects(None, None, None, Causal(), recommendation, [])


def preliminary(request: AnalysisRequest, compared: Compared, evaluated: Evaluated) -> Effects:
    """What stands before the stage has run: no advice yet where grafts or a sweep may change it."""
    recommendation = compared.recommendation
    if any(drift > 0 for drift in compared.drift):
        recommendation = unless_blocked(recommendation, evaluated.blockers)
        if recommendation.basis != "none" and (request.analysis.grafts or request.analysis.freeze_sweep):
            evidence = "It follows once the stage causal has measured what the change means for the outputs."
            recommendation = Recommendation(freeze_first=0, basis="none", evidence=evidence)
    return Effects(None, None, None, Causal(), recommendation, [])


SPLICED = SPLICE_TEXTS, SPLICE_TOKENS


def _spliced(
    context: PairContext, dictionaries: Dictionaries, eval_set: EvalSet, base: Headed | None, tuned: Headed
) -> Spliced:
    """Both models where the base has a head of the same classes, else the tuned one alone."""
    base, asked = _comparable(base, tuned), eval_set.first(*SPLICED)
    of_base = partial(SplicedLoss, asked, base.model, _targets(asked, base)) if base is not None else None
    of_tuned = partial(SplicedLoss, asked, tuned.model, _targets(asked, tuned))
    return splices(context, dictionaries, asked, of_base, of_tuned)


def _comparable(base: Headed | None, tuned: Headed) -> Headed | None:
    """The base model; None where it is a classifier of other classes."""
    other = base is not None and tuned.kind == "classifier" and common_order(base, class_names(tuned.model)) is None
    return None if other else base


def _targets(asked: EvalSet, headed: Headed) -> Tensor | None:
    """The right classes of the texts; None of a language model, and where no label is a class."""
    return known_targets(asked, headed.model) if headed.kind == "classifier" else None
