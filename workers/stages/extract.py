"""Stage `extract`: runs both models once over the texts.

Similarity moments are accumulated as the states stream by; for the autoencoders, rows go to a bounded scratch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError
from layerdrift.contract.report import ModelInfo, PartName, ReportWarning, TokenDrift, TokenText, ViewName, WeightDrift
from layerdrift.contract.request import AnalysisRequest
from workers.analysis.moments import Centre, NotFinite, PairMoments, row_cosines
from workers.analysis.similarity import MIN_ROWS
from workers.analysis.streams import RowSample, StreamedMoments
from workers.analysis.weights import weight_difference
from workers.models.device import best_device
from workers.models.loading import load_body, load_tokenizer
from workers.models.structure import blocks_of, is_causal, weight_groups
from workers.models.texts import Batch, batches, hidden_states, usable_length
from workers.scratch import ActivationStore, MomentsStore
from workers.stages.resolve import Checkpoint, Resolved
from workers.stages.tick import Tick

BATCH_TEXTS = 32
GROUPS = 20
CENTRE_TOKENS, CENTRE_TEXTS, CENTRE_BYTES = 4096, 512, 128 << 20
"""A view's centre is the mean over its first rows: so many, or as many as fit into so much memory, or all."""

SAMPLE_ROWS = 2048
"""Tokens of the random sample that the cross-layer map is computed on."""

SAE_EPOCHS = 2
"""An autoencoder sees each token twice or more: running the models costs more than a second look."""

HELDOUT_ROWS = 20_000
MOMENTS_SHARE, TRAIN_SHARE, HELDOUT_SHARE = 0.25, 0.5, 0.1
"""Of the scratch; measured rows may be written twice, and files have headers, so the shares leave something over."""

DEFAULT_TEXTS_SHOWN = 4
SPARE_TEXTS_AT_ONCE = 1024

VIEWS: tuple[ViewName, ...] = get_args(ViewName)


@dataclass(frozen=True)
class Pair:
    """Both models in memory, their tokenizer, and how texts are read."""

    base: PreTrainedModel
    tuned: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    length: int
    causal: bool

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The states of both at every layer, each [L + 1, B, T, D] on the CPU."""
        return hidden_states(self.base, batch).cpu(), hidden_states(self.tuned, batch).cpu()


@dataclass(frozen=True)
class SaeRows:
    """Rows for the autoencoders, base sites before tuned ones; `texts` were drawn on for training."""

    train: ActivationStore
    heldout: ActivationStore
    texts: int
    from_trained_rows: bool
    from_analysed_rows: bool


@dataclass(frozen=True)
class Extracted:
    """All that was taken from the models.

    moments: by view. groups: the same by group of texts, for intervals; empty where the scratch is too small for them.
    sample: base and tuned rows at random tokens, each [L + 1, N, D].
    """

    moments: dict[ViewName, PairMoments]
    groups: dict[ViewName, MomentsStore]
    sample: tuple[Tensor, Tensor]
    tokens: TokenDrift
    sae_rows: SaeRows | None
    weights: list[dict[PartName, WeightDrift]]
    models: dict[str, ModelInfo]
    warnings: list[ReportWarning]


def extract(
    request: AnalysisRequest, resolved: Resolved, tuned: Checkpoint, folder: Path, scratch_bytes: int, tick: Tick
) -> Extracted:
    """Runs both models.

    Raises:
        InputError: a model is broken, the pair does not fit together, or activations are NaN or infinite.
    """
    pair = _load_pair(request, resolved.base, tuned)
    with_sae = request.analysis.sae is not None
    share = 0.5 if with_sae else 1.0
    heldout = _store(pair, folder / "heldout", HELDOUT_ROWS, scratch_bytes * HELDOUT_SHARE) if with_sae else None
    texts = [row.text for row in resolved.split.analysed]
    gathered = _Gathered(pair, request.seed, _group_stores(pair, len(texts), folder, scratch_bytes * MOMENTS_SHARE))
    read = 0
    try:
        for group, batch in _grouped_batches(pair, texts):
            rows = gathered.add(group, batch)
            read += len(batch.indices)
            if heldout is not None and not heldout.full:
                heldout.add(torch.cat(rows))
            tick(share * read / len(texts), f"{gathered.tokens} tokens compared")
            if gathered.tokens >= request.analysis.max_tokens:
                break
        moments = gathered.finished()
    except NotFinite as error:
        raise InputError.at(f"/{error.side}/uri", str(error)) from error
    sae_rows = None
    if heldout is not None:
        sae_rows = _sae_rows(request, resolved, pair, heldout, folder, scratch_bytes, tick)
    return Extracted(
        moments=moments,
        groups=gathered.groups,
        sample=gathered.sample.rows(),
        tokens=_token_drift(request, pair, texts, moments["token"].centre),
        sae_rows=sae_rows,
        weights=_weight_drift(pair),
        warnings=_unread(len(texts) - read, request.analysis.max_tokens) + _no_intervals(gathered.groups),
        models={"base": _info(pair.base, resolved.base), "tuned": _info(pair.tuned, tuned)},
    )


def _load_pair(request: AnalysisRequest, base: Checkpoint, tuned: Checkpoint) -> Pair:
    device = best_device()
    base_model = load_body(base.folder, "/base/uri", device)
    tuned_model = load_body(tuned.folder, "/tuned/uri", device)
    tokenizer = load_tokenizer(base.folder, tuned.folder)
    blocks = len(blocks_of(base_model))
    if type(base_model) is not type(tuned_model) or len(blocks_of(tuned_model)) != blocks:
        raise InputError.at(
            "/tuned/uri", f"a {type(tuned_model).__name__} cannot be compared with a {type(base_model).__name__}"
        )
    length = min(usable_length(tokenizer, model, request.analysis.max_length) for model in (base_model, tuned_model))
    return Pair(base_model, tuned_model, tokenizer, length, is_causal(base_model))


def _info(model: PreTrainedModel, checkpoint: Checkpoint) -> ModelInfo:
    return ModelInfo(
        uri=checkpoint.uri,
        fingerprint=checkpoint.fingerprint,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        blocks=len(blocks_of(model)),
        hidden_size=model.config.hidden_size,
    )


def _unread(texts: int, max_tokens: int) -> list[ReportWarning]:
    if not texts:
        return []
    message = f"{texts} texts were not compared: analysis.max_tokens ({max_tokens}) was reached before them"
    return [ReportWarning(code="texts_not_reached", message=message)]


def _weight_drift(pair: Pair) -> list[dict[PartName, WeightDrift]]:
    """By layer and part; rows that one of two embedding tables has more than the other are left out."""
    base, tuned = (dict(model.named_parameters()) for model in (pair.base, pair.tuned))

    def drift(names: list[str]) -> WeightDrift:
        pairs = [(base[name], tuned[name]) for name in names]
        found = weight_difference((one[: len(other)], other[: len(one)]) for one, other in pairs)
        return WeightDrift(
            relative_frobenius=found.relative_frobenius,
            effective_rank=found.effective_rank,
            top8_share=found.top_share[8] if found.top_share else None,
            top16_share=found.top_share[16] if found.top_share else None,
        )

    return [{part: drift(names) for part, names in groups.items()} for groups in weight_groups(pair.base)]


def token_rows(states: Tensor, batch: Batch) -> Tensor:
    """The states of real tokens alone; [L + 1, B, T, D] -> [L + 1, N, D]."""
    return states[:, batch.real]


def text_rows(states: Tensor, batch: Batch, causal: bool) -> dict[ViewName, Tensor]:
    """One row for each text: `cls`, its first token (last, in a decoder), and `mean`, over its real tokens.

    Texts without a real token are left out of both. [L + 1, B, T, D] -> [L + 1, N, D] each
    """
    kept = batch.real.any(1)
    weights = batch.real[kept].float()
    weights = weights / weights.sum(1, keepdim=True)
    inside = states[:, kept]
    position = batch.attention_mask[kept].sum(1) - 1 if causal else torch.zeros(int(kept.sum()), dtype=torch.int64)
    return {
        "cls": inside[:, torch.arange(inside.shape[1]), position],
        "mean": torch.einsum("lbtd,bt->lbd", inside, weights),
    }


class _Gathered:
    """Moments of all views, and a sample of tokens, as batches come; the models run once."""

    def __init__(self, pair: Pair, seed: int, groups: dict[ViewName, MomentsStore]) -> None:
        self.sample = RowSample(SAMPLE_ROWS, torch.Generator().manual_seed(seed))
        self.groups = groups
        self.views = {view: self._stream(view) for view in VIEWS}
        self._pair = pair

    def _stream(self, view: ViewName) -> StreamedMoments:
        sink = self.groups[view].put if view in self.groups else _forget
        return StreamedMoments(CENTRE_TOKENS if view == "token" else CENTRE_TEXTS, CENTRE_BYTES, sink)

    @property
    def tokens(self) -> int:
        """Tokens compared so far."""
        return self.views["token"].rows

    def add(self, group: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Runs both models on a batch of a group; the token rows of both, [L + 1, N, D]."""
        base, tuned = self._pair.states(batch)
        tokens = (token_rows(base, batch), token_rows(tuned, batch))
        one, other = (text_rows(states, batch, self._pair.causal) for states in (base, tuned))
        self.sample.add(*tokens)
        self.views["token"].add(group, *tokens)
        for view in one:
            self.views[view].add(group, one[view], other[view])
        return tokens

    def finished(self) -> dict[ViewName, PairMoments]:
        """The moments of each view; InputError where there are too few tokens to say anything."""
        if self.tokens < MIN_ROWS:
            raise InputError.at(
                "/dataset",
                f"the texts have {self.tokens} tokens that are not special ones; at least {MIN_ROWS} are needed",
            )
        return {view: stream.finished() for view, stream in self.views.items()}


def _forget(_: PairMoments) -> None:
    """Takes a group's moments where there is no room for them."""


def _group_stores(pair: Pair, texts: int, folder: Path, limit_bytes: float) -> dict[ViewName, MomentsStore]:
    """A place for the moments of each group and view, or none where they do not fit."""
    sites, width = len(blocks_of(pair.base)) + 1, pair.base.config.hidden_size
    needed = MomentsStore.bytes_for(sites, width) * group_count(texts) * len(VIEWS)
    if needed > limit_bytes:
        return {}
    return {view: MomentsStore(folder / "moments" / view) for view in VIEWS}


def group_count(texts: int) -> int:
    """Groups that the texts are dealt into for intervals: of two texts or more."""
    return min(GROUPS, texts // 2)


def _grouped_batches(pair: Pair, texts: list[str]) -> Iterator[tuple[int, Batch]]:
    """Batches of one group after another; text number i is in group i mod G, whatever the texts' order means."""
    groups = group_count(len(texts))
    for group in range(groups):
        members = range(group, len(texts), groups)
        inside = [texts[index] for index in members]
        for batch in batches(pair.tokenizer, inside, BATCH_TEXTS, pair.length):
            yield group, batch._replace(indices=[members[index] for index in batch.indices])


def _no_intervals(groups: dict[ViewName, MomentsStore]) -> list[ReportWarning]:
    if groups:
        return []
    message = "no intervals: the moments of groups of texts do not fit into a quarter of LAYERDRIFT_SCRATCH_BYTES"
    return [ReportWarning(code="no_intervals", message=message)]


def _store(pair: Pair, folder: Path, rows: int, limit_bytes: float) -> ActivationStore:
    sites = 2 * (len(blocks_of(pair.base)) + 1)
    bytes_per_row = sites * pair.base.config.hidden_size * torch.bfloat16.itemsize
    return ActivationStore(folder, max_rows=min(rows, int(limit_bytes // bytes_per_row)))


def _sae_rows(
    request: AnalysisRequest,
    resolved: Resolved,
    pair: Pair,
    heldout: ActivationStore,
    folder: Path,
    scratch_bytes: int,
    tick: Tick,
) -> SaeRows:
    """Runs both models over texts that are not compared, spare ones first, until there are rows enough."""
    if request.analysis.sae is None:
        raise ValueError("this request has no autoencoders")
    split = resolved.split
    train = _store(pair, folder / "train", request.analysis.sae.tokens // SAE_EPOCHS, scratch_bytes * TRAIN_SHARE)
    texts = [row.text for row in chain(split.spare, split.train)]
    used = 0
    for batch in _spare_batches(pair, texts):
        used += len(batch.indices)
        train.add(torch.cat([token_rows(states, batch) for states in pair.states(batch)]))
        tick(0.5 + 0.5 * train.rows / train.max_rows, f"{train.rows} tokens for the autoencoders")
        if train.full:
            break
    too_few = train.rows < min(train.max_rows, heldout.rows)
    if too_few:
        used += len(split.analysed)
        heldout = _shared(heldout, train, folder / "measured")
    return SaeRows(train, heldout, used, used > len(split.spare) and bool(split.train), from_analysed_rows=too_few)


def _spare_batches(pair: Pair, texts: list[str]) -> Iterator[Batch]:
    for start in range(0, len(texts), SPARE_TEXTS_AT_ONCE):
        yield from batches(pair.tokenizer, texts[start : start + SPARE_TEXTS_AT_ONCE], BATCH_TEXTS, pair.length)


def _shared(compared: ActivationStore, train: ActivationStore, folder: Path) -> ActivationStore:
    """With too few other texts, four fifths of the compared rows train the autoencoders; gives back the rest."""
    measured = ActivationStore(folder, max_rows=compared.rows)
    room = compared.rows * 4 // 5
    for shard in compared.shards():
        train.add(shard[:, :room])
        measured.add(shard[:, room:])
        room = max(0, room - shard.shape[1])
    return measured


def _token_drift(request: AnalysisRequest, pair: Pair, analysed: list[str], centre: Centre) -> TokenDrift:
    """1 - centred cosine of every token of the shown texts, layer by layer."""
    shown = request.analysis.texts or analysed[:DEFAULT_TEXTS_SHOWN]
    found: dict[int, TokenText] = {}
    for batch in batches(pair.tokenizer, shown, BATCH_TEXTS, pair.length):
        base, tuned = pair.states(batch)
        cosines = row_cosines(base.double() - centre.base[:, None, None], tuned.double() - centre.tuned[:, None, None])
        for row, index in enumerate(batch.indices):
            length = int(batch.attention_mask[row].sum())
            found[index] = TokenText(
                text=shown[index],
                tokens=pair.tokenizer.convert_ids_to_tokens(batch.input_ids[row, :length].tolist()),
                special=(~batch.real[row, :length]).tolist(),
                drift=[[round(1 - float(value), 4) for value in layer[row, :length]] for layer in cosines],
            )
    source = "request" if request.analysis.texts else "dataset"
    return TokenDrift(source=source, texts=[found[index] for index in sorted(found)])
