"""Stage `extract`: runs the models over the texts.

Similarity moments are accumulated as the states stream by; rows that autoencoders are measured on go to a bounded
scratch. The nulls are measured here too, on fewer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from layerdrift.contract.names import PartName, ViewName
from layerdrift.contract.request import AnalysisRequest
from workers.analysis.moments import Frame, NotFinite, PairMoments
from workers.analysis.similarity import MIN_ROWS, row_drift
from workers.models.inliers import Inliers
from workers.models.texts import Batch, Text, batches, count_tokens
from workers.results.models import ModelInfo, WeightDrift
from workers.results.tokens import TokenDrift, TokenText
from workers.results.warnings import ReportWarning
from workers.scratch import GroupStore
from workers.stages.common.context import PairContext
from workers.stages.common.model_pair import Pair, load_pair, model_info, weight_drift
from workers.stages.common.moment_accumulator import (
    BATCH_TEXTS,
    GroupPlan,
    MomentAccumulator,
    States,
    TextSample,
    TokenizationSpec,
    group_stores,
)
from workers.stages.common.progress import Spans
from workers.stages.extract.heldout_rows import HeldoutRows, heldout_rows
from workers.stages.extract.last_states import LastStates
from workers.stages.extract.nulls import Nulls, null_costs, nulls_of
from workers.stages.extract.reference import ReferenceDrift, reference_drift
from workers.stages.finetune.stage import FineTuned

MOMENTS_SHARE = 0.25
"""Of the scratch, for the sums of groups of texts."""

INLIER_TOKENS, INLIER_BYTES = 2048, 128 << 20
"""Tokens whose norms settle which later ones are outliers: so many, or as many as fit into so much memory."""

ALL_TOKENS_GAP = 0.01
"""Drift with all tokens that differs by more from drift without the outliers is worth a warning."""

DEFAULT_TEXTS_SHOWN = 4

COMPARED, REFERENCE = "tokens compared", "tokens of the reference"
"""Spans of the stage, beside those of its nulls."""


@dataclass(frozen=True)
class TokenCounts:
    """Of the analysed texts. first, outliers: tokens that do not count, by why. unread: tokens beyond the length."""

    first: int
    outliers: int
    counted: int
    unread: int

    @property
    def excluded_share(self) -> float:
        """Of the tokens that were read."""
        return (self.first + self.outliers) / max(1, self.first + self.outliers + self.counted)

    @property
    def truncated_share(self) -> float:
        """Of all tokens."""
        return self.unread / max(1, self.first + self.outliers + self.counted + self.unread)


@dataclass(frozen=True)
class Extracted:
    """All that was taken from the models.

    tokenization: how texts were read, and which tokens counted.
    all_tokens: the token view's moments with the tokens that do not count; None where all do.
    moments: by view. groups: the same by group of texts, for intervals; empty where the scratch is too small for them.
    token_sample: base and tuned rows at random tokens, each [L + 1, N, D].
    last_states: of the base and the tuned model.
    heldout: compared rows that autoencoders are measured on; None where none are asked for.
    analysed: how many texts were read. shown: those whose tokens are told, as in `tokens`.
    """

    tokenization: TokenizationSpec
    counts: TokenCounts
    moments: dict[ViewName, PairMoments]
    all_tokens: PairMoments | None
    groups: dict[ViewName, GroupStore]
    token_sample: tuple[Tensor, Tensor]
    text_sample: TextSample
    analysed: int
    tokens: TokenDrift
    last_states: tuple[LastStates, LastStates]
    heldout: HeldoutRows | None
    weights: list[dict[PartName, WeightDrift]]
    nulls: Nulls
    reference: ReferenceDrift | None
    models: dict[str, ModelInfo]
    warnings: list[ReportWarning]
    shown: list[Text]


def extract(context: PairContext, finetuned: FineTuned | None) -> Extracted:
    """Runs the models; `finetuned` is what the fine-tune left beside the checkpoint, None for a pair.

    Raises:
        InputError: a model is broken, the pair does not fit together, or activations are NaN or infinite.
    """
    request, resolved, folder = context.request, context.resolved, context.folder
    moments_bytes = context.scratch_bytes * MOMENTS_SHARE
    pair = load_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length, resolved.units)
    every = [row.content for row in resolved.split.analysed]
    texts, tokens = _within(pair.tokenization, every, request.analysis.max_tokens)
    costs = {COMPARED: 2.0, REFERENCE: 1.0 if resolved.reference else 0.0, **null_costs(request.analysis.noise_floors)}
    spans = Spans(context.on_progress, costs)
    labels = [row.label for row in resolved.split.analysed[: len(texts)]]
    heldout = heldout_rows(context, pair.tokenization, labels)
    plan = pair.tokenization.plan(len(texts), tokens, moments_bytes)
    groups = group_stores(folder / "moments", plan) if plan is not None else {}
    pair, stream = _with_inliers(pair, texts)
    accumulator = MomentAccumulator(
        pair.tokenization.causal,
        request.seed,
        groups,
        plan.merged if plan is not None else 1,
        heldout.add if heldout is not None else None,
    )
    last = LastStates(len(texts)), LastStates(len(texts))
    moments, first, outliers = _gather(pair, _noted(stream, last), accumulator, _of(len(texts), spans.span(COMPARED)))
    whole = sum(count_tokens(pair.tokenization.tokenizer, texts, None))
    counts = TokenCounts(first, outliers, moments["token"].n, whole - tokens)
    shown: list[Text] = list(request.analysis.texts) or texts[:DEFAULT_TEXTS_SHOWN]
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
    return Extracted(
        tokenization=pair.tokenization,
        counts=counts,
        moments=moments,
        all_tokens=moments["token"].joined(left_out) if left_out is not None else None,
        groups=groups,
        token_sample=accumulator.token_sample.rows(),
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
        warnings=[
            *_unread(len(every) - len(texts), request.analysis.max_tokens),
            *_cut(counts, pair.tokenization.length, request.analysis.max_length),
            *_about_intervals(plan),
            *nulls.warnings,
        ],
    )


def _within(tokenization: TokenizationSpec, texts: list[Text], max_tokens: int) -> tuple[list[Text], int]:
    """As `TokenizationSpec.within`; InputError where all of them have too few tokens."""
    read, tokens = tokenization.within(texts, max_tokens)
    if tokens < MIN_ROWS:
        raise InputError.at(
            "/dataset", f"the texts have {tokens} tokens besides special ones; at least {MIN_ROWS} are needed"
        )
    return read, tokens


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
        _require_tokens(accumulator.tokens, first + outliers)
        return accumulator.moments(), first, outliers
    except NotFinite as error:
        raise InputError.at(f"/{error.side}/uri", str(error)) from error


def _require_tokens(counted: int, left_out: int) -> None:
    if counted < MIN_ROWS:
        raise InputError.at(
            "/dataset",
            f"{counted} tokens are left to compare, but at least {MIN_ROWS} are needed; {left_out} first tokens of "
            "texts and outliers do not count. Use more or longer texts",
        )


def _of(texts: int, on_progress: Callable[[float], None]) -> Callable[[int], None]:
    return lambda read: on_progress(read / texts)


def _cut(counts: TokenCounts, length: int, wanted: int | None) -> list[ReportWarning]:
    found = []
    if counts.unread:
        message = (
            f"{counts.truncated_share:.1%} of the tokens were not read: texts are truncated at {length} tokens "
            "(analysis.max_length); this report does not cover the rest"
        )
        found.append(ReportWarning(code="texts_cut", message=message))
    if wanted is not None and length < wanted:
        message = f"analysis.max_length is {wanted}, but the tokenizer and both models support at most {length} tokens"
        found.append(ReportWarning(code="length_reduced", message=message))
    return found


def _unread(texts: int, max_tokens: int) -> list[ReportWarning]:
    if not texts:
        return []
    message = f"{texts} texts were not compared: analysis.max_tokens ({max_tokens}) was reached first"
    return [ReportWarning(code="texts_not_reached", message=message)]


def _about_intervals(plan: GroupPlan | None) -> list[ReportWarning]:
    """What the width of the models and the scratch leave of the intervals."""
    limit = "a quarter of LAYERDRIFT_SCRATCH_BYTES"
    if plan is None:
        message = f"no intervals: not even a sample of the rows of the groups of texts fits into {limit}"
        return [ReportWarning(code="no_intervals", message=message)]
    if plan.sampled:
        parts = ", ".join(f"one row in {every} of the {view} view" for view, every in plan.every.items() if every > 1)
        message = (
            f"intervals use a sample of the rows ({parts}), because more does not fit into {limit}: they are wider "
            "than necessary"
        )
        return [ReportWarning(code="wide_intervals", message=message)]
    return []


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
                drift=[[round(float(value), 4) for value in layer[row, :length]] for layer in moved],
            )
    texts = [found[index] for index in sorted(found)]
    return TokenDrift(source="request" if request.analysis.texts else "dataset", texts=texts)


def shown_text(text: Text) -> str:
    """A text as people read it; of a pair both, with a bar between."""
    return text if isinstance(text, str) else " | ".join(text)
