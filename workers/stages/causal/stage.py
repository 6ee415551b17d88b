"""Stage `causal`: does the change matter to the outputs? Splices, grafts and, where asked, the freeze sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from layerdrift.contract.report import (
    Causal,
    ChangedLatent,
    LayerGraft,
    Recommendation,
    ReportWarning,
)
from layerdrift.contract.request import AnalysisRequest
from workers.models.device import best_device
from workers.models.loading import Headed, load_body
from workers.stages.causal.grafting import base_weights, graft_costs, predicted_by_grafts
from workers.stages.causal.sweep import freeze_sweep
from workers.stages.common.answers import Questions
from workers.stages.common.checkpointing import NOTHING_KEPT, Keeping
from workers.stages.common.inputs import Checkpoint, Resolved
from workers.stages.common.progress import SharedTicks, Tick
from workers.stages.compare.advice_blockers import without_doubts
from workers.stages.compare.evaluation import Evaluated, askable, base_with_head
from workers.stages.compare.outputs import class_names, common_order, known_targets
from workers.stages.compare.stage import Compared
from workers.stages.extract.stage import Extracted
from workers.stages.sae.latents import promoted
from workers.stages.sae.splicing import SPLICE_TEXTS, Dictionaries, Spliced, SplicedLoss, splices
from workers.stages.sae.stage import Trained

GRAFT_COST, SPLICE_COST, SWEEP_COST = 4.0, 4.0, 20.0
"""Shares of the stage's progress that these take."""


@dataclass(frozen=True)
class Judged:
    """What the stage found; `grafts` by layer; `spliced` where there are autoencoders and a head.

    latents: as they came, with what they promote in a language model.
    """

    grafts: list[LayerGraft] | None
    spliced: Spliced | None
    latents: list[ChangedLatent]
    causal: Causal
    recommendation: Recommendation
    warnings: list[ReportWarning]


def judge(
    request: AnalysisRequest,
    resolved: Resolved,
    checkpoint: Checkpoint,
    compared: Compared,
    evaluated: Evaluated,
    trained: Trained | None,
    extracted: Extracted,
    folder: Path,
    tick: Tick,
    keeping: Keeping = NOTHING_KEPT,
) -> Judged:
    """Asks the models about the texts that were compared.

    Raises:
        InputError: a checkpoint cannot be loaded with its head, or a retraining diverged.
    """
    swept = request.analysis.freeze_sweep is not None
    ticks = SharedTicks(
        tick,
        [
            SPLICE_COST if trained else 0.0,
            GRAFT_COST * request.analysis.grafts,
            SWEEP_COST * swept,
        ],
    )
    device = best_device()
    weights, warnings = base_weights(request, resolved, folder)
    tuned = askable(checkpoint, extracted.reading)[0]
    model = tuned.model if tuned else load_body(checkpoint.folder, "/tuned/uri", device)
    rows = resolved.split.analysed[: extracted.analysed]
    questions = Questions(extracted.reading, rows, tuned.kind if tuned else "classifier")
    splicing = ticks.next("autoencoders in the models")
    spliced, latents = None, trained.latents if trained else []
    if tuned is not None and trained is not None:
        base = base_with_head(resolved, tuned)
        spliced = _spliced(trained.dictionaries, questions, base, tuned, request.seed, splicing)
        if tuned.kind == "causal_lm":
            latents = promoted(latents, trained.dictionaries, tuned.model, extracted.reading.tokenizer)
    grafts, info = None, None
    grafting = ticks.next("grafts")
    if weights is not None:
        grafts, info = graft_costs(weights, model, questions, tuned is not None, grafting)
    del model, tuned
    causal = Causal(graft=info, splice=spliced.info if spliced else None)
    recommendation = compared.recommendation
    if info is not None and grafts is not None and any(drift > 0 for drift in compared.drift):
        recommendation = predicted_by_grafts(info, grafts) or recommendation
    if swept:
        sweep, recommendation = freeze_sweep(request, resolved, recommendation, ticks.next("freeze sweep"), keeping)
        causal = causal.model_copy(update={"sweep": sweep})
    if any(drift > 0 for drift in compared.drift):
        recommendation = without_doubts(recommendation, evaluated.doubts)
    return Judged(grafts, spliced, latents, causal, recommendation, warnings)


def preliminary(request: AnalysisRequest, compared: Compared, evaluated: Evaluated) -> Judged:
    """What stands before the stage has run: no advice yet where grafts or a sweep may change it."""
    recommendation = compared.recommendation
    if any(drift > 0 for drift in compared.drift):
        recommendation = without_doubts(recommendation, evaluated.doubts)
        if recommendation.basis != "none" and (request.analysis.grafts or request.analysis.freeze_sweep):
            evidence = "It follows once the stage causal has measured what the change means for the outputs."
            recommendation = Recommendation(freeze_first=0, basis="none", evidence=evidence)
    return Judged(None, None, [], Causal(), recommendation, [])


def _spliced(
    dictionaries: Dictionaries, questions: Questions, base: Headed | None, tuned: Headed, seed: int, tick: Tick
) -> Spliced:
    """Both models where the base has a head of the same classes, else the tuned one alone."""
    if base is not None and tuned.kind == "classifier" and common_order(base, class_names(tuned.model)) is None:
        base = None
    asked = replace(questions, rows=questions.rows[:SPLICE_TEXTS])

    def loss(model: PreTrainedModel) -> SplicedLoss:
        targets = known_targets(asked, model) if asked.kind == "classifier" else None
        return SplicedLoss(asked, model, targets)

    of_base = loss(base.model) if base is not None else None
    return splices(dictionaries, of_base, loss(tuned.model), len(asked.rows), seed, tick)
