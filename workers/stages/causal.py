"""Stage `causal`: does the change matter? Outputs of both models, grafts, and where asked the freeze sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from layerdrift.contract.report import (
    Causal,
    ChangedLatent,
    LayerGraft,
    Outputs,
    Recommendation,
    ReportWarning,
)
from layerdrift.contract.request import AnalysisRequest
from workers.models.device import best_device
from workers.models.loading import Headed, head_kind, head_refusal, load_body, load_headed
from workers.stages.answers import Questions
from workers.stages.compare import Compared
from workers.stages.doubts import doubts_of, relative_head_change, without_doubts
from workers.stages.extract import Extracted
from workers.stages.gather import Reading
from workers.stages.grafting import base_weights, graft_costs, predicted_by_grafts
from workers.stages.keeping import NOTHING_KEPT, Keeping
from workers.stages.latents import promoted
from workers.stages.outputs import class_names, common_order, known_targets, outputs_of
from workers.stages.reference import ReferenceDrift
from workers.stages.resolve import Checkpoint, Resolved
from workers.stages.sae import Trained
from workers.stages.splicing import SPLICE_TEXTS, Dictionaries, Spliced, SplicedLoss, splices
from workers.stages.sweep import freeze_sweep
from workers.stages.tick import SharedTicks, Tick

GRAFT_COST, SPLICE_COST, SWEEP_COST = 4.0, 4.0, 20.0
"""Shares of the stage's progress that these take, against 1 for the outputs."""


@dataclass(frozen=True)
class Judged:
    """What the stage found; `grafts` by layer; `spliced` where there are autoencoders and a head.

    latents: as they came, with what they promote in a language model.
    """

    outputs: Outputs | None
    on_reference: Outputs | None
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
            1.0,
            SPLICE_COST if trained else 0.0,
            GRAFT_COST * request.analysis.grafts,
            SWEEP_COST * swept,
        ],
    )
    device = best_device()
    weights, warnings = base_weights(request, resolved, folder)
    tuned = load_headed(checkpoint.folder, "/tuned/uri", device)
    warnings += _head_warnings(checkpoint, tuned)
    if tuned is not None and (unasked := _cannot_be_asked(tuned, extracted.reading)):
        tuned = None
        warnings += unasked
    rows = resolved.split.analysed[: extracted.analysed]
    model = tuned.model if tuned else load_body(checkpoint.folder, "/tuned/uri", device)
    questions = Questions(extracted.reading, rows, tuned.kind if tuned else "classifier")
    asking, splicing = ticks.next("outputs of the models"), ticks.next("autoencoders in the models")
    answers = _Answers(None, None, trained.latents if trained else [], None, None)
    if tuned is not None:
        general = _general(extracted.reference, tuned)
        answers, more = _answers(questions, general, resolved, tuned, trained, request.seed, asking, splicing)
        warnings += more
    grafts, info = None, None
    grafting = ticks.next("grafts")
    if weights is not None:
        grafts, info = graft_costs(weights, model, questions, tuned is not None, grafting)
    del model, tuned
    spliced = answers.spliced
    causal = Causal(graft=info, splice=spliced.info if spliced else None)
    doubts = doubts_of(answers.outputs, compared.drift, answers.head_change, len(rows))
    warnings += [ReportWarning(code=doubt.code, message=doubt.message) for doubt in doubts if doubt.code is not None]
    recommendation = compared.recommendation
    if info is not None and grafts is not None and any(drift > 0 for drift in compared.drift):
        recommendation = predicted_by_grafts(info, grafts) or recommendation
    if swept:
        sweep, recommendation = freeze_sweep(request, resolved, recommendation, ticks.next("freeze sweep"), keeping)
        causal = causal.model_copy(update={"sweep": sweep})
    if any(drift > 0 for drift in compared.drift):
        recommendation = without_doubts(recommendation, doubts)
    return Judged(
        answers.outputs, answers.on_reference, grafts, spliced, answers.latents, causal, recommendation, warnings
    )


@dataclass(frozen=True)
class _Answers:
    """What asking both models found; head_change as `relative_head_change` gives it."""

    outputs: Outputs | None
    spliced: Spliced | None
    latents: list[ChangedLatent]
    head_change: float | None
    on_reference: Outputs | None


def _general(reference: ReferenceDrift | None, tuned: Headed) -> Questions | None:
    return Questions(reference.reading, reference.rows, tuned.kind) if reference is not None else None


def _answers(
    questions: Questions,
    general: Questions | None,
    resolved: Resolved,
    tuned: Headed,
    trained: Trained | None,
    seed: int,
    asking: Tick,
    splicing: Tick,
) -> tuple[_Answers, list[ReportWarning]]:
    """Outputs of both models, also on the reference's texts, and with autoencoders in them where there are some."""
    base = _base_with_head(resolved, tuned)
    outputs, warnings = outputs_of(questions, base, tuned, asking)
    on_reference = outputs_of(general, base, tuned, lambda _: asking(1.0))[0] if general is not None else None
    head_change = relative_head_change(base.model, tuned.model) if base is not None else None
    if trained is None:
        return _Answers(outputs, None, [], head_change, on_reference), warnings
    spliced = _spliced(trained.dictionaries, questions, base, tuned, seed, splicing)
    latents = trained.latents
    if tuned.kind == "causal_lm":
        latents = promoted(trained.latents, trained.dictionaries, tuned.model, questions.reading.tokenizer)
    return _Answers(outputs, spliced, latents, head_change, on_reference), warnings


def _cannot_be_asked(tuned: Headed, reading: Reading) -> list[ReportWarning]:
    """Why a head cannot be asked on these texts; empty where it can."""
    codes = ["answers_not_judged"]
    if tuned.kind == "causal_lm" and not reading.causal:
        reason = "its head predicts the next token, but the model sees later tokens"
    elif tuned.kind == "masked_lm" and reading.tokenizer.mask_token_id is None:
        reason = "its head fills in masked tokens, but the tokenizer has no mask token to ask with"
        codes.append("no_mask_token")
    else:
        return []
    message = f"the tuned model's answers were not judged: {reason}. Its representations were compared all the same"
    return [ReportWarning(code=code, message=message) for code in codes]


def _head_warnings(checkpoint: Checkpoint, tuned: Headed | None) -> list[ReportWarning]:
    """Why the answers of a model that says it has a head are not judged."""
    if tuned is not None:
        return []
    reason = head_refusal(checkpoint.folder, "/tuned/uri")
    if reason is None and head_kind(checkpoint.folder, "/tuned/uri") is not None:
        reason = "its files do not hold the whole head that config.json names"
    reason = reason or "it has no head"
    message = f"the tuned model's answers were not judged: {reason}. Its representations were compared all the same"
    return [ReportWarning(code="answers_not_judged", message=message)]


def _base_with_head(resolved: Resolved, tuned: Headed) -> Headed | None:
    """The base model where it has a head of the tuned one's kind."""
    if head_kind(resolved.base.folder, "/base/uri") != tuned.kind:
        return None
    return load_headed(resolved.base.folder, "/base/uri", tuned.model.device)


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
