"""Both models of an analysis with one block of each in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError
from workers.models.adapter_blocks import AdapterBlocks
from workers.models.blockwise import BlockFiles
from workers.models.device import best_device
from workers.models.inliers import Inliers
from workers.models.loading import ANSWER, loaded
from workers.models.states import StateReader
from workers.models.structure import NotBlockwise, embedding_parameters, is_causal
from workers.models.texts import usable_length
from workers.stages.common.inputs import Checkpoint, UnmergedAdapter
from workers.stages.common.moment_accumulator import TokenizationSpec


@dataclass(frozen=True)
class LayeredPair:
    """Both models, and how texts are read. embeddings: the names of the parameters that layer 0 depends on."""

    base: BlockFiles
    tuned: BlockFiles | AdapterBlocks
    tokenization: TokenizationSpec
    embeddings: list[str]

    @property
    def layers(self) -> int:
        """L + 1."""
        return self.base.depth + 1

    @property
    def width(self) -> int:
        """D."""
        return self.tokenization.states.width

    def with_inliers(self, inliers: Inliers) -> LayeredPair:
        """The same pair, now that it is known which tokens count."""
        return replace(self, tokenization=replace(self.tokenization, inliers=inliers))

    @contextmanager
    def block(self, number: int) -> Iterator[None]:
        """Inside, a block of both models has its weights."""
        with self.base.block(number), self.tuned.block(number):
            yield


def layered_pair(
    base: Checkpoint,
    tuned: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    units: tuple[int, ...] | None = None,
) -> LayeredPair:
    """Both models on the best device, in one precision: that of their files, of two the finer one.

    Raises:
        NotBlockwise: their blocks cannot run one at a time.
        InputError: as `load_pair`.
    """
    device = best_device()
    one = BlockFiles(base.folder, "/base/uri", device)
    if tuned.adapter is not None:
        return _with_adapter(one, base, tuned.adapter, tokenizer, length, units)
    other = BlockFiles(tuned.folder, "/tuned/uri", device)
    if type(one.model) is not type(other.model) or one.depth != other.depth:
        raise InputError.at(
            "/tuned/uri", f"a {type(other.model).__name__} cannot be compared with a {type(one.model).__name__}"
        )
    if one.dtype != other.dtype:
        dtype = torch.promote_types(one.dtype, other.dtype)
        one = BlockFiles(base.folder, "/base/uri", device, dtype)
        other = BlockFiles(tuned.folder, "/tuned/uri", device, dtype)
    states, causal, embeddings = _tried(one, base)
    if _tried(other, tuned)[0] != states:
        raise InputError.at("/tuned/uri", "the two models have states of different shapes")
    length = min(usable_length(tokenizer, side.model, length) for side in (one, other))
    return LayeredPair(one, other, TokenizationSpec(tokenizer, length, causal, states, units=units), embeddings)


def _with_adapter(
    one: BlockFiles,
    base: Checkpoint,
    adapter: UnmergedAdapter,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    units: tuple[int, ...] | None,
) -> LayeredPair:
    """The base, and the same with the adapter in it: both read each block once."""
    other = AdapterBlocks(one, adapter.folder)
    states, causal, embeddings = _tried(one, base)
    length = usable_length(tokenizer, one.model, length)
    return LayeredPair(one, other, TokenizationSpec(tokenizer, length, causal, states, units=units), embeddings)


def _tried(side: BlockFiles, checkpoint: Checkpoint) -> tuple[StateReader, bool, list[str]]:
    """How a model's states are read, whether a token sees later ones, and the parameters of its layer 0."""

    def attempt() -> tuple[StateReader, bool, list[str]]:
        with side.stand_ins() as model:
            reader = StateReader.of(model, side.pointer)
            if reader.reads_padding:
                raise NotBlockwise(f"padding changes the states of {type(model).__name__}")
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            embeddings = [names[id(parameter)] for parameter in embedding_parameters(model)]
            return reader, is_causal(model), embeddings

    try:
        return loaded(checkpoint.folder, side.pointer, ANSWER, attempt)
    except InputError as error:  # of stand-ins: what is wrong with the model itself, the whole one tells
        raise NotBlockwise(error.detail) from error
