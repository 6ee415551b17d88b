"""Rows for the autoencoders: activations of both models at tokens that are not compared, in a bounded scratch.

They are trained on these, and measured on rows of the compared tokens, which `extract` sets aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from workers.models.loading import random_copy
from workers.models.texts import Batch, Text, batches
from workers.scratch import ActivationStore
from workers.stages.common.context import PairContext
from workers.stages.common.inputs import Resolved
from workers.stages.common.model_pair import Pair, fast_states, load_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS, States, TokenizationSpec, token_rows
from workers.stages.common.progress import OnProgress, Spans
from workers.stages.common.site_layout import joined
from workers.stages.extract.contexts import Contexts
from workers.stages.extract.heldout_rows import TRAIN_SHARE, HeldoutRows, row_store, sae_bytes
from workers.stages.sae.layered_rows import Fill, fill_by_layer, fill_from_random

SAE_EPOCHS = 2
"""An autoencoder sees each token twice or more: running the models costs more than a second look."""

SPARE_TEXTS_AT_ONCE = 1024

OF_PAIR, OF_RANDOM = "tokens for the autoencoders", "tokens of a random model"
OF_COMPARED, OF_SPARE = "compared texts through a random model", "spare texts through a random model"
"""Spans of the progress."""


@dataclass(frozen=True)
class ControlRows:
    """Rows of a randomly initialised copy of the base model at the tokens of the pair's, in their order."""

    train: ActivationStore
    heldout: ActivationStore


@dataclass(frozen=True)
class SaeRows:
    """Rows for the autoencoders, base sites before tuned ones; `texts` were drawn on for training.

    contexts: of the held-out rows. layers: the models' layers that rows are of. control: where it is asked for.
    """

    train: ActivationStore
    heldout: ActivationStore
    contexts: Contexts
    layers: list[int]
    texts: int
    from_trained_rows: bool
    from_analysed_rows: bool
    control: ControlRows | None = None


def sae_rows(
    context: PairContext, tokenization: TokenizationSpec, heldout: HeldoutRows, layered: bool = False
) -> SaeRows:
    """Runs both models, and a random one where it is asked for, over texts that were not compared.

    Args:
        tokenization: how the compared texts were read, with the rule for outliers.
        heldout: of the compared texts, on which the autoencoders are measured.
        layered: whether the models run block by block.
    """
    request, resolved, sae = context.request, context.resolved, context.request.analysis.sae
    if sae is None:
        raise ValueError("no autoencoders were asked for")
    spans = Spans(context.on_progress, {OF_PAIR: 2.0, OF_RANDOM: float(sae.random_weights)})
    limit = sae_bytes(request, context.scratch_bytes) * TRAIN_SHARE
    shape = len(heldout.layers), tokenization.states.width
    train = row_store(shape, context.folder / "train", sae.tokens // SAE_EPOCHS, limit)
    bounds = train.max_rows, heldout.rows.max_rows

    if layered:
        fill = fill_by_layer(context, tokenization, heldout.layers)
    else:
        pair = replace(
            load_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length), tokenization=tokenization
        )
        fill = _filling(lambda batch: _pair_rows(pair, batch, heldout.layers))
    found = _spare_rows(resolved, tokenization, fill, train, heldout, spans.span(OF_PAIR))
    if not sae.random_weights:
        return found
    if layered:
        fill = fill_from_random(context, tokenization, heldout.layers, request.seed)
    else:
        model = random_copy(pair.base, request.seed)
        fill = _filling(lambda batch: _random_rows(model, tokenization, batch, heldout.layers))
    control = _control_rows(context.part(spans.span(OF_RANDOM)), tokenization, fill, bounds, heldout.layers)
    return replace(found, control=control)


def _filling(rows_of: Callable[[Batch], Tensor]) -> Fill:
    """A batch at a time; `rows_of`: of all sites at a batch's tokens that count, [S, N, D]."""

    def fill(spare: Iterator[Batch], train: ActivationStore, on_progress: OnProgress) -> int:
        used = 0
        for batch in spare:
            used += len(batch.indices)
            train.add(rows_of(batch))
            on_progress(train.rows / train.max_rows)
            if train.full:
                break
        return used

    return fill


def _spare_rows(
    resolved: Resolved,
    tokenization: TokenizationSpec,
    fill: Fill,
    train: ActivationStore,
    heldout: HeldoutRows,
    on_progress: OnProgress,
) -> SaeRows:
    """Runs models over texts that are not compared, spare ones first, until there are rows enough.

    Args:
        train: where they go. heldout: of the compared texts; with too few others most of them are trained on.
    """
    split = resolved.split
    texts = [row.content for row in chain(split.spare, split.held_out, split.train)]
    used = fill(_spare_batches(tokenization, texts), train, on_progress)
    too_few = train.rows < min(train.max_rows, heldout.rows.rows)
    if too_few:
        used += len(split.analysed)
        heldout = _shared(heldout, train, train.folder.with_name(f"{train.folder.name}-measured"))
    trained = used > len(split.spare) + len(split.held_out) and bool(split.train)
    measured, contexts = heldout.rows, heldout.contexts
    return SaeRows(
        train, measured, contexts, heldout.layers, used, from_trained_rows=trained, from_analysed_rows=too_few
    )


def _control_rows(
    context: PairContext, tokenization: TokenizationSpec, fill: Fill, bounds: tuple[int, int], layers: list[int]
) -> ControlRows:
    """The rows of the same tokens, in the same order, of a model that was never trained.

    Args:
        fill: of that model's rows. bounds: most rows to train on and to hold out, as for the pair.
    """
    resolved, on_progress = context.resolved, context.on_progress
    every = [row.content for row in resolved.split.analysed]
    texts, _ = tokenization.within(every, context.request.analysis.max_tokens)
    train, heldout = (
        ActivationStore(context.folder / f"control-{name}", max_rows=rows)
        for name, rows in zip(("train", "heldout"), bounds, strict=True)
    )
    spans = Spans(on_progress, {OF_COMPARED: 0.2, OF_SPARE: 0.8})
    fill((batch for _, batch in tokenization.grouped(texts)), heldout, spans.span(OF_COMPARED))
    compared = HeldoutRows(heldout, Contexts(tokenization.tokenizer, []), layers)
    found = _spare_rows(resolved, tokenization, fill, train, compared, spans.span(OF_SPARE))
    return ControlRows(found.train, found.heldout)


def _random_rows(model: PreTrainedModel, tokenization: TokenizationSpec, batch: Batch, layers: list[int]) -> Tensor:
    return token_rows(_at(layers, fast_states(tokenization, model, batch)), tokenization.known(batch))


def _pair_rows(pair: Pair, batch: Batch, layers: list[int]) -> Tensor:
    base, tuned = pair.fast_states(batch)
    batch = pair.tokenization.rule.mark(batch, base, tuned)
    return joined(token_rows(_at(layers, base), batch), token_rows(_at(layers, tuned), batch))


def _at(layers: list[int], states: States) -> States:
    return [states[layer] for layer in layers]


def _spare_batches(tokenization: TokenizationSpec, texts: list[Text]) -> Iterator[Batch]:
    for start in range(0, len(texts), SPARE_TEXTS_AT_ONCE):
        part = texts[start : start + SPARE_TEXTS_AT_ONCE]
        yield from batches(tokenization.tokenizer, part, BATCH_TEXTS, tokenization.length, BATCH_TOKENS)


def _shared(compared: HeldoutRows, train: ActivationStore, folder: Path) -> HeldoutRows:
    """With too few other texts, four fifths of the compared rows train the autoencoders; gives back the rest."""
    measured = ActivationStore(folder, max_rows=compared.rows.rows)
    taken = room = compared.rows.rows * 4 // 5
    for shard in compared.rows.shards():
        train.add(shard[:, :room])
        measured.add(shard[:, room:])
        room = max(0, room - shard.shape[1])
    return HeldoutRows(measured, compared.contexts.without_first(taken), compared.layers)
