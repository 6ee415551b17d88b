"""The outputs of both models on the compared texts: what their heads answer, and what speaks against the fine-tune."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from workers.models.device import best_device
from workers.models.known_head import KnownHead, is_alone, load_head
from workers.models.layer_order import Pass
from workers.models.loading import Headed, head_kind, head_refusal, load_headed
from workers.models.prefix import PrefixCache
from workers.models.structure import NotBlockwise
from workers.models.texts import batches
from workers.results.outputs import Outputs
from workers.results.text_scores import TextScores
from workers.results.warnings import ReportWarning
from workers.stages.common.context import PairContext
from workers.stages.common.endings import Endings
from workers.stages.common.evaluation import EvalSet
from workers.stages.common.inputs import Checkpoint, Resolved
from workers.stages.common.layered_pair import layered_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS, TokenizationSpec
from workers.stages.compare.advice_blockers import AdviceBlocker, blockers_of, relative_head_change
from workers.stages.compare.answer_outputs import (
    BETA,
    AnswerScores,
    Asked,
    choice_outputs,
    preference_outputs,
    stop_warnings,
)
from workers.stages.compare.outputs import OutputsFound, outputs_of
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.last_states import LastStates


@dataclass(frozen=True)
class Evaluated:
    """The outputs of both models on the analysed and on the reference texts, and what speaks against the fine-tune.

    by_text: what the tuned model's metric on the analysed texts is made of; None: it has none.
    """

    outputs: Outputs | None
    on_reference: Outputs | None
    blockers: list[AdviceBlocker]
    warnings: list[ReportWarning]
    by_text: TextScores | None = None


def evaluate_outputs(context: PairContext, drift: list[float], extracted: Extracted) -> Evaluated:
    """Runs the heads of both models on the texts that were compared, and on the reference texts.

    Args:
        drift: of the layers, to tell whether it explains changed answers.

    Raises:
        InputError: a checkpoint cannot be loaded with its head.
    """
    resolved, on_progress = context.resolved, context.on_progress
    tuned, warnings = asked_model(context.tuned, resolved.base, extracted)
    if tuned is None:
        return Evaluated(None, None, blockers_of(None, drift, None, extracted.analysed), warnings)
    eval_set = EvalSet(extracted.tokenization, resolved.split.analysed[: extracted.analysed], tuned.kind)
    base = base_like(context, tuned, extracted)
    if is_alone(tuned.model):
        eval_set = replace(eval_set, heads=_known_heads(extracted.last_states, base, tuned))
    elif tuned.kind == "classifier":
        eval_set = replace(eval_set, known=_known_states(extracted, base, tuned))
    found = outputs_of(eval_set, base, tuned, on_progress)
    outputs, of_endings = with_endings(context, extracted, eval_set, found, base, tuned)
    on_reference = None
    if extracted.reference is not None:
        general = EvalSet(extracted.reference.tokenization, extracted.reference.rows, tuned.kind)
        if extracted.reference_states is not None and is_alone(tuned.model):
            general = replace(general, heads=_known_heads(extracted.reference_states, base, tuned))
        on_reference = outputs_of(general, base, tuned, lambda _: on_progress(1.0)).outputs
    head_change = relative_head_change(base.model, tuned.model) if base is not None else None
    last_moved = extracted.views["token"].sites[-1].relative_l2_centred
    blockers = blockers_of(outputs, drift, head_change, extracted.analysed, last_moved)
    warnings += [*found.warnings, *of_endings, *stop_warnings(outputs.answers, extracted.tokenization.tokenizer)]
    warnings += [
        ReportWarning(code=blocker.code, message=blocker.message) for blocker in blockers if blocker.code is not None
    ]
    return Evaluated(outputs, on_reference, blockers, warnings, found.by_text)


def with_endings(
    context: PairContext,
    extracted: Extracted,
    eval_set: EvalSet,
    found: OutputsFound,
    base: Headed | None,
    tuned: Headed,
) -> tuple[Outputs, list[ReportWarning]]:
    """The outputs with what both models make of the other endings of chats: rejected answers, and wrong choices.

    A warning where there are such endings, and all are too long to be read.

    Raises:
        InputError: a block cannot be read.
    """
    if tuned.kind != "causal_lm":
        return found.outputs, []
    rows = eval_set.rows
    endings = Endings.of(extracted.tokenization, rows)
    if endings is None:
        return found.outputs, []
    if not endings.rows:
        message = (
            f"none of the {endings.skipped} analysed chats with other endings fits into "
            f"{extracted.tokenization.length} tokens, so neither preferences nor choices are compared; raise "
            "analysis.max_length"
        )
        return found.outputs, [ReportWarning(code="truncated_answers", message=message)]
    asked = EvalSet(replace(extracted.tokenization, units=None), endings.rows, tuned.kind)
    if is_alone(tuned.model):
        states = ending_states(context, asked)
        asked = replace(asked, heads=_known_heads(states, base, tuned))
    others = AnswerScores(len(endings.rows))
    for batch in asked.batches():
        for span in asked.spans(batch):
            of_base = asked.predict_all(base.model, batch, span=span) if base is not None else None
            others.add(asked.predict_all(tuned.model, batch, span=span), of_base)
    both = Asked(eval_set, endings, found.answers, others, base is not None)
    chat = rows[endings.owners[0]].chat
    if chat is not None and chat.choices:
        return replace(found.outputs, choices=choice_outputs(both)), []
    finetune = context.request.finetune
    preferences = preference_outputs(both, finetune.beta if finetune else BETA)
    return replace(found.outputs, preferences=preferences), []


def ending_states(context: PairContext, asked: EvalSet) -> tuple[LastStates, LastStates]:
    """The last states of both models at these texts, block by block.

    Raises:
        InputError: a block cannot be read.
    """
    resolved, spec = context.resolved, asked.tokenization
    pair = layered_pair(resolved.base, context.tuned, resolved.tokenizer, spec.length)
    texts = [row.content for row in asked.rows]
    read = list(batches(spec.tokenizer, texts, BATCH_TEXTS, spec.length, BATCH_TOKENS))
    passes = [Pass(side, read, spec.states, checked=False) for side in (pair.base, pair.tuned)]
    try:
        for one in passes:
            one.start()
        for layer in range(pair.base.depth):
            with pair.block(layer):
                for one in passes:
                    one.advance()
        found = [LastStates(len(texts), context.folder / f"endings-{side}") for side in ("base", "tuned")]
        for kept, one in zip(found, passes, strict=True):
            for batch, state in zip(read, one.states, strict=True):
                kept.add(batch, state.cpu())
    finally:
        for one in passes:
            one.close()
    return found[0], found[1]


def asked_model(
    checkpoint: Checkpoint, base: Checkpoint, extracted: Extracted
) -> tuple[Headed | None, list[ReportWarning]]:
    """As `evaluable_model`; of a model that ran block by block its head alone, where that answers by itself."""
    if extracted.execution.mode == "whole":
        return evaluable_model(checkpoint, extracted.tokenization)
    weights = base.light if checkpoint.adapter is not None else checkpoint.light  # such an adapter leaves the head
    tuned = load_head(weights, "/tuned/uri", best_device(), extracted.last_states[1].dtype)
    if tuned is None:
        if head_kind(checkpoint.light, "/tuned/uri") == "causal_lm":
            return None, _head_warnings(checkpoint)
        return evaluable_model(checkpoint, extracted.tokenization)
    unasked = _why_not_evaluable(tuned, extracted.tokenization)
    return (None, unasked) if unasked else (tuned, [])


def base_like(context: PairContext, tuned: Headed, extracted: Extracted) -> Headed | None:
    """As `base_with_head`, in memory as the tuned model is; where an adapter left the head, in the same memory."""
    resolved = context.resolved
    if not is_alone(tuned.model):
        return base_with_head(resolved, tuned)
    if head_kind(resolved.base.folder, "/base/uri") != tuned.kind:
        return None
    if context.tuned.adapter is not None:
        return tuned._replace(model=copy.copy(tuned.model))
    return load_head(resolved.base.folder, "/base/uri", best_device(), extracted.last_states[0].dtype)


def language_heads(context: PairContext, extracted: Extracted) -> list[tuple[Path, str]] | None:
    """Folder and pointer of the base's and the tuned model's head; None where the two are not language models."""
    resolved, found = context.resolved, list[tuple[Path, str]]()
    tuned = resolved.base.light if context.tuned.adapter is not None else context.tuned.light
    for folder, pointer in ((resolved.base.folder, "/base/uri"), (tuned, "/tuned/uri")):
        if not extracted.tokenization.causal or head_kind(folder, pointer) != "causal_lm":
            return None
        found.append((folder, pointer))
    return found


def head_alone(folder: Path, pointer: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of which the head alone has weights.

    Args:
        dtype: of the states that it will read.

    Raises:
        NotBlockwise: it cannot be read without the rest.
    """
    head = load_head(folder, pointer, best_device(), dtype)
    if head is None:
        raise NotBlockwise("a head cannot be read without the rest of its model")
    return head.model


def _known_heads(states: tuple[LastStates, LastStates], base: Headed | None, tuned: Headed) -> dict[int, KnownHead]:
    """By `id` of a model, its head on the states that its body had."""
    sides = [(tuned, states[1])] + ([(base, states[0])] if base is not None else [])
    return {id(headed.model): KnownHead(headed.model, kept.state) for headed, kept in sides}


def _known_states(extracted: Extracted, base: Headed | None, tuned: Headed) -> dict[int, PrefixCache]:
    """By `id` of a headed model, the states that its body had at the compared texts."""
    sides = [(tuned, extracted.last_states[1])] + ([(base, extracted.last_states[0])] if base is not None else [])
    caches = ((headed.model, states.cache(headed.model, extracted.tokenization)) for headed, states in sides)
    return {id(model): cache for model, cache in caches if cache is not None}


def evaluable_model(
    checkpoint: Checkpoint, tokenization: TokenizationSpec
) -> tuple[Headed | None, list[ReportWarning]]:
    """The tuned model with its head; None, and why, where the head cannot be asked on these texts."""
    tuned = load_headed(checkpoint.folder, "/tuned/uri", best_device())
    if tuned is None:
        return None, _head_warnings(checkpoint)
    unasked = _why_not_evaluable(tuned, tokenization)
    return (None, unasked) if unasked else (tuned, [])


def _why_not_evaluable(tuned: Headed, tokenization: TokenizationSpec) -> list[ReportWarning]:
    """Why a head cannot be asked on these texts; empty where it can."""
    codes = ["answers_not_evaluated"]
    if tuned.kind == "causal_lm" and not tokenization.causal:
        reason = "its head predicts the next token, but the model sees later tokens"
    elif tuned.kind == "masked_lm" and tokenization.tokenizer.mask_token_id is None:
        reason = "its head predicts masked tokens, but the tokenizer has no mask token"
        codes.append("no_mask_token")
    else:
        return []
    message = f"the tuned model's outputs were not evaluated: {reason}. Its representations were still compared"
    return [ReportWarning(code=code, message=message) for code in codes]


def _head_warnings(checkpoint: Checkpoint) -> list[ReportWarning]:
    """Why the outputs of a model without a usable head are not evaluated."""
    reason = head_refusal(checkpoint.light, "/tuned/uri")
    if reason is None and head_kind(checkpoint.light, "/tuned/uri") is not None:
        reason = "its files do not contain the complete head that config.json names"
    reason = reason or "it has no head"
    message = f"the tuned model's outputs were not evaluated: {reason}. Its representations were still compared"
    return [ReportWarning(code="answers_not_evaluated", message=message)]


def base_with_head(resolved: Resolved, tuned: Headed) -> Headed | None:
    """The base model where it has a head of the tuned one's kind."""
    if head_kind(resolved.base.folder, "/base/uri") != tuned.kind:
        return None
    return load_headed(resolved.base.folder, "/base/uri", tuned.model.device)
