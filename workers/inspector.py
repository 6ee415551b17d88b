"""Texts through the pair of a finished analysis, which stays in memory while it is used: what /v1/inspect answers.

Knows nothing of HTTP; `service.use_cases.inspect` imports it on the first request, where torch is installed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.storage import key_names
from backends.storage.artifact_names import SAES
from layerdrift.contract.errors import ConflictError, InputError, LayerdriftError
from layerdrift.contract.inspection import STRONGEST, InspectedLayer, InspectedText, Inspection, LatentActivation
from workers.analysis.moments import row_cosines
from workers.analysis.sae import SaeStack
from workers.analysis.similarity import row_drift
from workers.finished_pairs import fetched_objects, finished_pair, states_of
from workers.models.blockwise import BlockwiseModel
from workers.models.structure import NotBlockwise
from workers.models.texts import Batch, batches, encode
from workers.next_tokens import Heads
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.layered_pair import LayeredPair, layered_pair
from workers.stages.common.model_pair import Pair, load_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS

logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """One request: whose it is, which analysis, which texts, and how far language models go on from them."""

    tenant: str
    analysis_id: str
    texts: Sequence[str]
    completion_tokens: int = 0


@dataclass(frozen=True)
class LoadedPair:
    """A pair in memory, or one block of it at a time. base_saes, tuned_saes: by layer that has autoencoders.

    centres: base and tuned, [L + 1, D] each. spreads: mean squared distances from them, [L + 1] each; None of an
    analysis that kept none.
    """

    pair: Pair | LayeredPair
    centres: tuple[Tensor, Tensor]
    spreads: tuple[Tensor, Tensor] | None
    base_saes: dict[int, SaeStack]
    tuned_saes: dict[int, SaeStack]
    heads: Heads | None = None

    @property
    def bytes(self) -> int:
        """What its weights take, as far as they are in memory."""
        sides = self.pair.base, self.pair.tuned
        models = [side if isinstance(side, PreTrainedModel) else side.model for side in sides]
        own = {id(one): one.nbytes for model in models for one in model.parameters() if not one.is_meta}
        saes = (*self.base_saes.values(), *self.tuned_saes.values())
        heads = self.heads.bytes if self.heads is not None else 0
        return heads + sum(own.values()) + sum(tensor.nbytes for sae in saes for tensor in sae.tensors().values())

    def states(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Of both models at every layer, L + 1 times [B, T, D] each."""
        return states_of(self.pair, batch)


class Inspector:
    """Answers requests, many at once; keeps the pairs that were used last within a limit of memory.

    A pair beyond the limit is read block by block from its files for every request, which stay on disk.
    """

    def __init__(self, deployment: Deployment, folder: Path, max_bytes: int) -> None:
        self._deployment = deployment
        self._folder = folder
        self._max_bytes = max_bytes
        self._pairs: OrderedDict[str, LoadedPair] = OrderedDict()

    @property
    def kept(self) -> list[str]:
        """Ids whose pairs are in memory, the least recently used first."""
        return list(self._pairs)

    def answer(self, asked: Sequence[Asked]) -> list[Inspection | LayerdriftError]:
        """An answer or an error for each; those of one analysis are read together, and none spoils another."""
        found: dict[int, Inspection | LayerdriftError] = {}
        for analysis_id in dict.fromkeys(one.analysis_id for one in asked):
            members = [number for number, one in enumerate(asked) if one.analysis_id == analysis_id]
            found |= self._answer_pair(analysis_id, {number: asked[number] for number in members})
        return [found[number] for number in range(len(asked))]

    def _answer_pair(self, analysis_id: str, asked: dict[int, Asked]) -> dict[int, Inspection | LayerdriftError]:
        found: dict[int, Inspection | LayerdriftError] = {}
        allowed: dict[int, Asked] = {}
        record: JobRecord | None = None
        for number, one in asked.items():
            try:
                record = self._record(one)
            except LayerdriftError as error:
                found[number] = error
            else:
                allowed[number] = one
        if record is None:
            return found
        try:
            loaded = self._loaded(record)
            texts = inspected(loaded, [text for one in allowed.values() for text in one.texts])
            tokens = [one.completion_tokens for one in allowed.values() for _ in one.texts]
            texts = completed(loaded, texts, tokens)
        except LayerdriftError as error:
            return found | dict.fromkeys(allowed, error)
        remaining = iter(texts)
        for number, one in allowed.items():
            found[number] = Inspection(analysis_id=analysis_id, texts=[next(remaining) for _ in one.texts])
        return found

    def _record(self, asked: Asked) -> JobRecord:
        record = self._deployment.jobs.get(asked.analysis_id, asked.tenant)
        if record.status != "succeeded":
            raise ConflictError(f"there is nothing to inspect: the analysis is {record.status}")
        return record

    def _loaded(self, record: JobRecord) -> LoadedPair:
        if record.id in self._pairs:
            self._pairs.move_to_end(record.id)
            return self._pairs[record.id]
        stored = self._stored_bytes(record)
        in_layers = stored > self._max_bytes
        if in_layers:  # one at a time: their files fill the disk
            for one in [name for name, pair in self._pairs.items() if isinstance(pair.pair, LayeredPair)]:
                self._forget(one)
        else:
            self._make_room(stored)
        folder = self._folder / record.id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            loaded = self._load(record, folder, in_layers)
            if loaded.bytes > self._max_bytes:  # next tokens are a thing that can be done without
                loaded = replace(loaded, heads=None)
            self._make_room(loaded.bytes)  # in float32 it may take more than its files do
            self._pairs[record.id] = loaded
            return loaded
        finally:
            if not in_layers or record.id not in self._pairs:
                shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self, wanted: int) -> None:
        """Forgets pairs until so many bytes fit; InputError where they never do."""
        if wanted > self._max_bytes:
            raise InputError(f"the pair needs {wanted} bytes; LAYERDRIFT_INSPECT_MEMORY_BYTES allows {self._max_bytes}")
        while wanted + sum(pair.bytes for pair in self._pairs.values()) > self._max_bytes:
            self._forget(next(iter(self._pairs)))

    def _forget(self, analysis_id: str) -> None:
        del self._pairs[analysis_id]
        shutil.rmtree(self._folder / analysis_id, ignore_errors=True)
        logger.info("%s: removing its pair from memory", analysis_id)

    def _stored_bytes(self, record: JobRecord) -> int:
        """What a pair's files take: a fine-tuned model counts as its base, an adapter as what it is merged into."""
        base = sum(file.size for file in record.pins.base.files)
        tuned = record.pins.tuned
        other = base if tuned is None or tuned.adapter else sum(file.size for file in tuned.files)
        prefixes = (key_names.sae_prefix(record.owned) + side for side in ("base/", "tuned/"))
        return base + other + sum(blob.size for prefix in prefixes for blob in self._deployment.blobs.list(prefix))

    def _load(self, record: JobRecord, folder: Path, in_layers: bool) -> LoadedPair:
        found = finished_pair(self._deployment, record, folder, self._layered if in_layers else load_pair)
        pair, centres = found.pair, found.centres
        layers = pair.tokenization.states.layers
        base_saes, tuned_saes = (self._autoencoders(record, side, layers, folder / SAES) for side in ("base", "tuned"))
        spreads = (centres["base_spread"], centres["tuned_spread"]) if "base_spread" in centres else None
        heads = None
        if pair.tokenization.causal:
            heads = Heads.load(found.base, found.tuned, (_dtype(pair.base), _dtype(pair.tuned)))
        return LoadedPair(pair, (centres["base"], centres["tuned"]), spreads, base_saes, tuned_saes, heads)

    def _layered(
        self, base: Checkpoint, tuned: Checkpoint, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> LayeredPair:
        try:
            return layered_pair(base, tuned, tokenizer, length)
        except NotBlockwise as error:
            raise InputError(
                f"the pair is larger than LAYERDRIFT_INSPECT_MEMORY_BYTES ({self._max_bytes}) and cannot be read block "
                f"by block: {error}"
            ) from error

    def _autoencoders(self, record: JobRecord, side: str, layers: int, folder: Path) -> dict[int, SaeStack]:
        found = {}
        for layer in range(layers):
            target = folder / side / f"{layer:02d}"
            prefix = f"{key_names.sae_prefix(record.owned)}{side}/layer-{layer:02d}/"
            if fetched_objects(self._deployment.blobs, prefix, target) and (target / "cfg.json").exists():
                found[layer] = load_saved_sae(target)
        return found


def load_saved_sae(folder: Path) -> SaeStack:
    """An autoencoder as `workers.stages.sae.files` writes it, as a stack of one whose inputs are raw rows."""
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "sae_weights.safetensors")
    latents = weights["b_enc"].shape[0]
    return SaeStack(
        W_enc=weights["W_enc"].T[None].contiguous(),
        W_dec=weights["W_dec"][None],
        b_enc=weights["b_enc"][None],
        b_dec=weights["b_dec"][None],
        scale=torch.ones(1),
        norm_limit=torch.full((1,), torch.inf),
        threshold=weights.get("threshold", torch.zeros(latents))[None],
        row_k=int(config.get("k", 0)) if config["architecture"] == "topk" else 0,
    )


def inspected(loaded: LoadedPair, texts: Sequence[str]) -> list[InspectedText]:
    """Every text through both models, in the order given."""
    tokenization = loaded.pair.tokenization
    found: dict[int, InspectedText] = {}
    for batch in batches(tokenization.tokenizer, list(texts), BATCH_TEXTS, tokenization.length, BATCH_TOKENS):
        states = loaded.states(batch)
        if tokenization.inliers is not None:
            batch = tokenization.inliers.mark(batch, *states)
        base, tuned = (torch.stack(side) for side in states)
        for row, index in enumerate(batch.indices):
            length = int(batch.attention_mask[row].sum())
            sides = base[:, row, :length], tuned[:, row, :length]
            found[index] = _text(loaded, texts[index], batch, row, sides)
    return [found[index] for index in range(len(texts))]


def _text(loaded: LoadedPair, text: str, batch: Batch, row: int, sides: tuple[Tensor, Tensor]) -> InspectedText:
    base, tuned = sides
    tokenization, length = loaded.pair.tokenization, base.shape[1]
    special = (~batch.real[row, :length]).tolist()
    one, other = (side.double() - centre[:, None] for side, centre in zip(sides, loaded.centres, strict=True))
    moved = 1 - row_cosines(one, other) if loaded.spreads is None else row_drift(one, other, loaded.spreads)
    drift = moved.tolist()
    layers = []
    for layer in range(len(base)):
        layers.append(
            InspectedLayer(
                drift=[None if skip else round(value, 4) for value, skip in zip(drift[layer], special, strict=True)],
                base_norm=[round(value, 4) for value in base[layer].norm(dim=1).tolist()],
                tuned_norm=[round(value, 4) for value in tuned[layer].norm(dim=1).tolist()],
                base_latents=_strongest(loaded.base_saes, layer, base[layer]),
                tuned_latents=_strongest(loaded.tuned_saes, layer, tuned[layer]),
            )
        )
    whole = len(encode(tokenization.tokenizer, [text], None)[0].ids)
    heads, ends = loaded.heads, (base[-1], tuned[-1])
    return InspectedText(
        text=text,
        tokens=tokenization.tokenizer.convert_ids_to_tokens(batch.input_ids[row, :length].tolist()),
        special=special,
        truncated=whole > length,
        layers=layers,
        next_tokens=heads.next_tokens(tokenization.tokenizer, batch, row, ends) if heads is not None else None,
    )


def completed(loaded: LoadedPair, texts: Sequence[InspectedText], tokens: Sequence[int]) -> list[InspectedText]:
    """The same texts with how both models go on from them, where these are whole language models.

    Args:
        tokens: of each text, at most; 0: none.
    """
    found = list(texts)
    if loaded.heads is None or not isinstance(loaded.pair, Pair):
        return found
    spec, bodies = loaded.pair.tokenization, (loaded.pair.base, loaded.pair.tuned)
    for count in sorted(set(tokens) - {0}):
        chosen = [place for place, own in enumerate(tokens) if own == count]
        ids = [one.ids for one in encode(spec.tokenizer, [texts[place].text for place in chosen], spec.length)]
        for place, written in zip(
            chosen, loaded.heads.completions(bodies, spec.tokenizer, ids, count), strict=True
        ):  # fmt: skip
            found[place] = texts[place].model_copy(update={"completions": written})
    return found


def _dtype(side: PreTrainedModel | BlockwiseModel) -> torch.dtype:
    return (side if isinstance(side, PreTrainedModel) else side.model).dtype


def _strongest(saes: dict[int, SaeStack], layer: int, rows: Tensor) -> list[list[LatentActivation]] | None:
    if layer not in saes:
        return None
    top = saes[layer].encode(0, rows).topk(STRONGEST, dim=1)
    return [
        [
            LatentActivation(latent=latent, activation=value)
            for latent, value in zip(latents, values, strict=True)
            if value > 0
        ]
        for latents, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
