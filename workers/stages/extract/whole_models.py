"""Stage `extract` with both models whole in memory: moments of all layers are summed as batches come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch

from layerdrift.contract.errors import InputError
from layerdrift.contract.names import ViewName
from layerdrift.contract.request import AnalysisRequest
from workers.analysis.moments import Frame, NotFinite, PairMoments
from workers.analysis.similarity import row_drift, similarities
from workers.models.inliers import Inliers
from workers.models.texts import Batch, Text, batches, count_tokens
from workers.results.tokens import TokenDrift, TokenText
from workers.results.warnings import ReportWarning
from workers.stages.common.context import PairContext
from workers.stages.common.model_pair import Pair, load_pair, model_info, weight_drift
from workers.stages.common.moment_accumulator import (
    BATCH_TEXTS,
    MomentAccumulator,
    States,
    group_stores,
)
from workers.stages.common.progress import Spans
from workers.stages.common.view_similarity import ViewSimilarity
from workers.stages.extract.extracted import MOMENTS_SHARE, Execution, Extracted, TokenCounts
from workers.stages.extract.heldout_rows import heldout_rows
from workers.stages.extract.last_states import LastStates
from workers.stages.extract.nulls import null_costs, nulls_of
from workers.stages.extract.read_texts import (
    about_intervals,
    cut_texts,
    require_tokens,
    shown_roles,
    shown_text,
    shown_texts,
    unread_texts,
    within,
)
from workers.stages.extract.reference import reference_drift
from workers.stages.finetune.stage import FineTuned

INLIER_TOKENS, INLIER_BYTES = 2048, 128 << 20
"""Tokens whose norms settle which later ones are outliers: so many, or as many as fit into so much memory."""

COMPARED, INTERVALS, REFERENCE = "tokens compared", "intervals", "tokens of the reference"
"""Spans of the stage, beside those of its nulls."""


def extract_whole(context: PairContext, finetuned: FineTuned | None, reason: str | None = None) -> Extracted:
    """Runs both models whole; `finetuned` is what the fine-tune left beside the checkpoint, None for a pair.

    Args:
        reason: why they do not run block by block, where that was tried.

    Raises:
        InputError: a model is broken, the pair does not fit together, or activations are NaN or infinite.
    """
    request, resolved, folder = context.request, context.resolved, context.folder
    moments_bytes = context.scratch_bytes * MOMENTS_SHARE
    pair = load_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length, resolved.units)
    every = [row.content for row in resolved.split.analysed]
    texts, tokens = within(pair.tokenization, every, request.analysis.max_tokens)
    pair = replace(pair, tokenization=pair.tokenization.with_roles(texts))
    costs = {COMPARED: 2.0, REFERENCE: 1.0 if resolved.reference else 0.0}
    costs |= null_costs(request.analysis.noise_floors) | {INTERVALS: 0.5}
    spans = Spans(context.on_progress, costs)
    labels = [row.label for row in resolved.split.analysed[: len(texts)]]
    heldout = heldout_rows(context, pair.tokenization, labels)
    plan = pair.tokenization.plan(len(texts), tokens, moments_bytes)
    roles = pair.tokenization.roles
    groups = group_stores(folder / "moments", plan, roles) if plan is not None else {}
    pair, stream = _with_inliers(pair, texts)
    accumulator = MomentAccumulator(
        pair.tokenization.causal,
        request.seed,
        groups,
        plan.merged if plan is not None else 1,
        heldout.add if heldout is not None else None,
        roles,
    )
    last = LastStates(len(texts)), LastStates(len(texts))
    moments, first, outliers = _gather(pair, _noted(stream, last), accumulator, _of(len(texts), spans.span(COMPARED)))
    whole = sum(count_tokens(pair.tokenization.tokenizer, texts, None))
    counts = TokenCounts(first, outliers, moments["token"].n, whole - tokens)
    shown = shown_texts(request, texts)
    told = _token_drift(request, pair, shown, moments["token"].frame)
    weights = weight_drift(pair)
    models = {"base": model_info(pair.base, resolved.base), "tuned": model_info(pair.tuned, context.tuned)}
    general = (
        reference_drift(pair, resolved.reference.rows, folder, moments_bytes, spans.span(REFERENCE))
        if resolved.reference
        else None
    )
    nulls = nulls_of(pair, finetuned, texts, request.seed, spans)
    left_out = accumulator.excluded_moments()
    all_tokens = similarities(moments["token"].joined(left_out)) if left_out is not None else None
    on_interval = spans.span(INTERVALS)
    views = {
        view: ViewSimilarity.of(found, groups.get(view), _part(on_interval, number, len(moments)))
        for number, (view, found) in enumerate(moments.items())
    }
    for store in groups.values():
        store.clear()
    return Extracted(
        tokenization=pair.tokenization,
        counts=counts,
        views=views,
        frame=moments["token"].frame,
        all_tokens=all_tokens,
        token_sample=accumulator.token_sample(),
        text_sample=accumulator.text_sample(),
        analysed=len(texts),
        tokens=told,
        shown=shown,
        last_states=last,
        heldout=heldout,
        weights=weights,
        nulls=nulls,
        reference=general,
        models=models,
        execution=Execution("whole", reason),
        warnings=[
            *unread_texts(len(every) - len(texts), request.analysis.max_tokens),
            *cut_texts(counts, pair.tokenization.length, request.analysis.max_length),
            *about_intervals(plan),
            *nulls.warnings,
            *_ran_whole(reason),
        ],
    )


def _ran_whole(reason: str | None) -> list[ReportWarning]:
    if reason is None:
        return []
    return [ReportWarning(code="ran_whole", message=f"both models were whole in memory: {reason}")]


class _Read(NamedTuple):
    """A batch of a group of texts, and the states of both models on it."""

    group: int
    batch: Batch
    base: States
    tuned: States


def _with_inliers(pair: Pair, texts: Sequence[Text]) -> tuple[Pair, Iterator[_Read]]:
    """The pair with its rule for outliers, which its first batches settle; and all batches, these included."""

    def read() -> Iterator[_Read]:
        for group, batch in pair.tokenization.grouped(texts):
            yield _Read(group, batch, *pair.remembered_states(batch))

    stream, first, tokens, size = read(), [], 0, 0
    for one in stream:
        first.append(one)
        tokens += int(one.batch.real.sum())
        size += sum(state.nbytes for state in (*one.base, *one.tuned))
        if tokens >= INLIER_TOKENS or size >= INLIER_BYTES:
            break
    inliers = Inliers.of(pair.tokenization.causal, [(one.batch, one.base, one.tuned) for one in first])
    return pair.with_inliers(inliers), chain(first, stream)


def _noted(stream: Iterator[_Read], last: tuple[LastStates, LastStates]) -> Iterator[_Read]:
    """The batches, whose last states are kept on the way."""
    for one in stream:
        for states, model in zip(last, (one.base, one.tuned), strict=True):
            states.add(one.batch, model[-1])
        yield one


def _gather(
    pair: Pair, stream: Iterator[_Read], accumulator: MomentAccumulator, on_progress: Callable[[int], None]
) -> tuple[dict[ViewName, PairMoments], int, int]:
    """The moments, and how many tokens were left out: first ones and other outliers.

    Args:
        on_progress: is told how many texts were read.
    """
    inliers, read, first, outliers = pair.tokenization.rule, 0, 0, 0
    try:
        for group, whole, base, tuned in stream:
            batch = inliers.mark(whole, base, tuned)
            left_out = whole.real & ~batch.real
            at_start = int(left_out[:, 0].sum()) if inliers.causal else 0
            first, outliers = first + at_start, outliers + int(left_out.sum()) - at_start
            accumulator.add(group, batch, base, tuned, left_out)
            read += len(batch.indices)
            on_progress(read)
        require_tokens(accumulator.tokens, first + outliers)
        return accumulator.moments(), first, outliers
    except NotFinite as error:
        raise InputError.at(f"/{error.side}/uri", str(error)) from error


def _part(on_progress: Callable[[float], None], number: int, of: int) -> Callable[[float], None]:
    return lambda share: on_progress((number + share) / of)


def _of(texts: int, on_progress: Callable[[float], None]) -> Callable[[int], None]:
    return lambda read: on_progress(read / texts)


def _token_drift(request: AnalysisRequest, pair: Pair, shown: list[Text], frame: Frame) -> TokenDrift:
    """How far every token of the shown texts moved, layer by layer."""
    tokenizer = pair.tokenization.tokenizer
    found: dict[int, TokenText] = {}
    for batch in batches(tokenizer, shown, BATCH_TEXTS, pair.tokenization.length):
        states = pair.states(batch)
        batch = pair.tokenization.rule.mark(batch, *states)
        base, tuned = (torch.stack(side) for side in states)
        centred = base.double() - frame.base[:, None, None], tuned.double() - frame.tuned[:, None, None]
        moved = row_drift(*centred, frame.spreads())
        for row, index in enumerate(batch.indices):
            length = int(batch.attention_mask[row].sum())
            found[index] = TokenText(
                text=shown_text(shown[index]),
                tokens=list(tokenizer.convert_ids_to_tokens(batch.input_ids[row, :length].tolist())),
                special=(~batch.real[row, :length]).tolist(),
                roles=shown_roles(batch, row, length),
                drift=[[round(float(value), 4) for value in layer[row, :length]] for layer in moved],
            )
    texts = [found[index] for index in sorted(found)]
    return TokenDrift(source="request" if request.analysis.texts else "dataset", texts=texts)
