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
from layerdrift.contract.report import ModelInfo, PartName, TokenDrift, TokenText, ViewName, WeightDrift
from layerdrift.contract.request import AnalysisRequest
from workers.analysis.moments import Centre, NotFinite, PairMoments, row_cosines
from workers.analysis.weights import weight_difference
from workers.models.device import best_device
from workers.models.loading import load_body, load_tokenizer
from workers.models.structure import blocks_of, is_causal, weight_groups
from workers.models.texts import Batch, batches, hidden_states, usable_length
from workers.scratch import ActivationStore
from workers.stages.resolve import Checkpoint, Resolved
from workers.stages.tick import Tick

BATCH_TEXTS = 32
CENTRE_ROWS = 4096
"""Centres are the means over so many tokens, or over all where there are fewer."""

CENTRE_BYTES = 256 << 20
SAMPLE_ROWS = 2048
"""Tokens of the random sample that the cross-layer map is computed on."""

SAE_EPOCHS = 2
"""An autoencoder sees each token twice or more: running the models costs more than a second look."""

HELDOUT_ROWS = 20_000
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

    moments: by view. sample: base and tuned rows at random tokens, each [L + 1, N, D].
    """

    moments: dict[ViewName, PairMoments]
    sample: tuple[Tensor, Tensor]
    tokens: TokenDrift
    sae_rows: SaeRows | None
    weights: list[dict[PartName, WeightDrift]]
    models: dict[str, ModelInfo]


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
    heldout = _store(pair, folder / "heldout", HELDOUT_ROWS, scratch_bytes // 10) if with_sae else None
    texts = [row.text for row in resolved.split.analysed]
    gathered = _Gathered(pair, request.analysis.max_tokens, request.seed)
    try:
        for done, batch in enumerate(batches(pair.tokenizer, texts, BATCH_TEXTS, pair.length)):
            rows = gathered.add(batch)
            if heldout is not None and not heldout.full:
                heldout.add(torch.cat(rows))
            tick(share * min(1.0, (done + 1) * BATCH_TEXTS / len(texts)), f"{gathered.tokens} tokens compared")
            if gathered.full:
                break
        gathered.finish()
    except NotFinite as error:
        raise InputError.at(f"/{error.side}/uri", str(error)) from error
    sae_rows = None
    if heldout is not None:
        sae_rows = _sae_rows(request, resolved, pair, heldout, folder, scratch_bytes, tick)
    return Extracted(
        moments=gathered.moments,
        sample=gathered.sample.rows(),
        tokens=_token_drift(request, pair, texts, gathered.centre),
        sae_rows=sae_rows,
        weights=_weight_drift(pair),
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
    """Moments of all views, and a sample of tokens, as batches come.

    The first rows are held back until the centres can be computed from them, so that the models run once.
    """

    def __init__(self, pair: Pair, max_tokens: int, seed: int) -> None:
        self.tokens = 0
        self.moments: dict[ViewName, PairMoments] = {}
        self.sample = _Reservoir(SAMPLE_ROWS, torch.Generator().manual_seed(seed))
        self._pair = pair
        self._max_tokens = max_tokens
        self._held: list[dict[ViewName, tuple[Tensor, Tensor]]] = []
        self._held_bytes = 0

    @property
    def full(self) -> bool:
        return self.tokens >= self._max_tokens

    @property
    def centre(self) -> Centre:
        """The token view's centre."""
        return self.moments["token"].centre

    def add(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Runs both models on a batch; the token rows of both, [L + 1, N, D]."""
        base, tuned = self._pair.states(batch)
        tokens = (token_rows(base, batch), token_rows(tuned, batch))
        one, other = (text_rows(states, batch, self._pair.causal) for states in (base, tuned))
        rows: dict[ViewName, tuple[Tensor, Tensor]] = {view: (one[view], other[view]) for view in one}
        rows["token"] = tokens
        self.tokens += tokens[0].shape[1]
        self.sample.add(*tokens)
        if self.moments:
            self._accumulate(rows)
        else:
            self._hold(rows)
        return tokens

    def finish(self) -> None:
        """No more batches: whatever is still held is counted."""
        if not self.moments:
            self._settle()

    def _hold(self, rows: dict[ViewName, tuple[Tensor, Tensor]]) -> None:
        self._held.append(rows)
        self._held_bytes += sum(tensor.nbytes for pair in rows.values() for tensor in pair)
        if self.tokens >= CENTRE_ROWS or self._held_bytes >= CENTRE_BYTES:
            self._settle()

    def _settle(self) -> None:
        for view in VIEWS:
            base, tuned = (torch.cat([rows[view][side] for rows in self._held], dim=1) for side in (0, 1))
            if not base.shape[1]:
                raise InputError.at("/dataset", "no text has a token that is not a special one")
            self.moments[view] = PairMoments.zeros(Centre.of(base, tuned))
        for rows in self._held:
            self._accumulate(rows)
        self._held = []

    def _accumulate(self, rows: dict[ViewName, tuple[Tensor, Tensor]]) -> None:
        for view, (base, tuned) in rows.items():
            self.moments[view].add(base, tuned)


class _Reservoir:
    """A uniform random sample of the rows that came (Vitter's algorithm R, a batch at a time)."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._size = size
        self._generator = generator
        self._seen = 0
        self._base: Tensor | None = None
        self._tuned: Tensor | None = None

    def add(self, base: Tensor, tuned: Tensor) -> None:
        if self._base is None or self._tuned is None:
            shape = (base.shape[0], self._size, base.shape[2])
            self._base, self._tuned = base.new_empty(shape), tuned.new_empty(shape)
        arrival = torch.arange(self._seen, self._seen + base.shape[1])
        drawn = (torch.rand(len(arrival), dtype=torch.float64, generator=self._generator) * (arrival + 1)).long()
        places = torch.where(arrival < self._size, arrival, drawn)
        self._seen += len(arrival)
        for row in (places < self._size).nonzero().squeeze(1).tolist():
            self._base[:, places[row]] = base[:, row]
            self._tuned[:, places[row]] = tuned[:, row]

    def rows(self) -> tuple[Tensor, Tensor]:
        """The sample of both models, [L + 1, N, D] each."""
        if self._base is None or self._tuned is None:
            raise ValueError("no rows came")
        count = min(self._seen, self._size)
        return self._base[:, :count], self._tuned[:, :count]


def _store(pair: Pair, folder: Path, rows: int, limit_bytes: int) -> ActivationStore:
    sites = 2 * (len(blocks_of(pair.base)) + 1)
    bytes_per_row = sites * pair.base.config.hidden_size * torch.bfloat16.itemsize
    return ActivationStore(folder, max_rows=min(rows, limit_bytes // bytes_per_row))


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
    wanted = request.analysis.sae.tokens // SAE_EPOCHS
    train = _store(pair, folder / "train", wanted, scratch_bytes * 9 // 10)
    used = 0
    sources = chain(split.spare, split.train) if split.spare or split.train else iter(())
    texts = [row.text for row in sources]
    if not texts:
        return _split_heldout(heldout, folder, len(split.analysed))
    for batch in _spare_batches(pair, texts):
        used += len(batch.indices)
        train.add(torch.cat([token_rows(states, batch) for states in pair.states(batch)]))
        tick(0.5 + 0.5 * train.rows / train.max_rows, f"{train.rows} tokens for the autoencoders")
        if train.full:
            break
    return SaeRows(train, heldout, used, used > len(split.spare), from_analysed_rows=False)


def _spare_batches(pair: Pair, texts: list[str]) -> Iterator[Batch]:
    for start in range(0, len(texts), SPARE_TEXTS_AT_ONCE):
        yield from batches(pair.tokenizer, texts[start : start + SPARE_TEXTS_AT_ONCE], BATCH_TEXTS, pair.length)


def _split_heldout(rows: ActivationStore, folder: Path, texts: int) -> SaeRows:
    """With no other texts at hand, four fifths of the compared rows train the autoencoders, the rest measures them."""
    train = ActivationStore(folder / "train", max_rows=rows.rows * 4 // 5)
    heldout = ActivationStore(folder / "measured", max_rows=rows.rows)
    for shard in rows.shards():
        room = train.max_rows - train.rows
        train.add(shard[:, :room])
        heldout.add(shard[:, room:])
    return SaeRows(train, heldout, texts, from_trained_rows=False, from_analysed_rows=True)


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
