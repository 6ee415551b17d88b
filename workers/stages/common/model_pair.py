"""The two models of an analysis, in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError
from layerdrift.contract.names import PartName
from workers.analysis.weights import weight_difference
from workers.models.device import best_device, fast_dtype
from workers.models.inliers import Inliers
from workers.models.loading import ANSWER, load_body, loaded
from workers.models.states import StateReader
from workers.models.structure import blocks_of, is_causal, weight_groups
from workers.models.texts import Batch, usable_length
from workers.results.models import ModelInfo, WeightDrift
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.moment_accumulator import States, TokenizationSpec

REMEMBERED_BYTES = 512 << 20
"""Memory for the states of the first compared texts, which the nulls are measured on too."""


class StateMemory:
    """The states of models on the first batches of a pass, so that they do not run on them again."""

    def __init__(self, limit_bytes: int = REMEMBERED_BYTES) -> None:
        self._left = limit_bytes
        self._kept: dict[tuple[int, ...], tuple[States, ...]] = {}

    def put(self, batch: Batch, *states: States) -> None:
        """Keeps those of one or more models while there is room."""
        size = sum(state.nbytes for model in states for state in model)
        if size <= self._left:
            self._left -= size
            self._kept[tuple(batch.indices)] = states

    def get(self, batch: Batch) -> tuple[States, ...] | None:
        """Of the same batch; None where they were not kept."""
        return self._kept.get(tuple(batch.indices))


@dataclass(frozen=True)
class Pair:
    """Both models in memory, and how texts are read."""

    base: PreTrainedModel
    tuned: PreTrainedModel
    tokenization: TokenizationSpec
    memory: StateMemory = field(default_factory=StateMemory)

    def states(self, batch: Batch) -> tuple[States, States]:
        """The states of both."""
        read = self.tokenization.states.states
        return read(self.base, batch), read(self.tuned, batch)

    def remembered_states(self, batch: Batch) -> tuple[States, States]:
        """The same of a batch of the compared texts, which are asked for again."""
        found = self.memory.get(batch)
        if found is not None:
            return found[0], found[1]
        base, tuned = self.states(batch)
        self.memory.put(batch, base, tuned)
        return base, tuned

    def base_states(self, batch: Batch) -> States:
        """Those of the base model on a batch of the compared texts."""
        found = self.memory.get(batch)
        return found[0] if found is not None else self.tokenization.states.states(self.base, batch)

    def fast_states(self, batch: Batch) -> tuple[States, States]:
        """As `fast_states` of both models."""
        return fast_states(self.tokenization, self.base, batch), fast_states(self.tokenization, self.tuned, batch)

    def with_inliers(self, inliers: Inliers) -> Pair:
        """The same pair, now that it is known which tokens count."""
        return replace(self, tokenization=replace(self.tokenization, inliers=inliers))

    @property
    def shape(self) -> tuple[int, int]:
        """L + 1 layers, D wide."""
        return self.tokenization.states.layers, self.tokenization.states.width


def fast_states(tokenization: TokenizationSpec, model: PreTrainedModel, batch: Batch) -> States:
    """A model's states to about 1 %: products are in bfloat16 where the hardware multiplies it, else in float32."""
    device = model.device
    fast = fast_dtype(device) == torch.bfloat16 and model.dtype == torch.float32
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        return [state.float() for state in tokenization.states.states(model, batch)]


def load_pair(
    base: Checkpoint,
    tuned: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    units: tuple[int, ...] | None = None,
) -> Pair:
    """Both models, on the best device; texts are read up to `length` tokens, or what both models have positions for.

    Args:
        units: as in `TokenizationSpec`.

    Raises:
        InputError: a model is broken, its layers cannot be read, or the two do not fit together.
    """
    device = best_device()
    base_model = load_body(base.folder, "/base/uri", device)
    tuned_model = load_body(tuned.folder, "/tuned/uri", device)
    blocks = _block_count(base_model, "/base/uri")
    if type(base_model) is not type(tuned_model) or _block_count(tuned_model, "/tuned/uri") != blocks:
        raise InputError.at(
            "/tuned/uri", f"a {type(tuned_model).__name__} cannot be compared with a {type(base_model).__name__}"
        )
    states = _reader(base_model, base, "/base/uri")
    if _reader(tuned_model, tuned, "/tuned/uri") != states:
        raise InputError.at("/tuned/uri", "the two models have states of different shapes")
    length = min(usable_length(tokenizer, model, length) for model in (base_model, tuned_model))
    causal = loaded(base.folder, "/base/uri", ANSWER, lambda: is_causal(base_model))
    return Pair(base_model, tuned_model, TokenizationSpec(tokenizer, length, causal, states, units=units))


def _block_count(model: PreTrainedModel, pointer: str) -> int:
    try:
        return len(blocks_of(model))
    except InputError as error:
        raise InputError.at(pointer, error.detail) from error


def _reader(model: PreTrainedModel, checkpoint: Checkpoint, pointer: str) -> StateReader:
    """How the states of a model are read; InputError where it cannot even run a small batch."""
    what = "the model's states on a small batch"
    return loaded(checkpoint.folder, pointer, what, lambda: StateReader.of(model, pointer))


def model_info(model: PreTrainedModel, checkpoint: Checkpoint) -> ModelInfo:
    """What the report says of a model."""
    return ModelInfo(
        uri=checkpoint.uri,
        fingerprint=checkpoint.fingerprint,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        blocks=len(blocks_of(model)),
        hidden_size=model.config.get_text_config().hidden_size,
    )


def weight_drift(pair: Pair) -> list[dict[PartName, WeightDrift]]:
    """By layer and part; rows that one of two embedding tables has more than the other are left out."""
    base, tuned = (dict(model.named_parameters()) for model in (pair.base, pair.tuned))

    def drift(names: list[str]) -> WeightDrift:
        return drift_of_weights((base[name], tuned[name]) for name in names)

    return [{part: drift(names) for part, names in groups.items()} for groups in weight_groups(pair.base)]


def drift_of_weights(pairs: Iterable[tuple[Tensor, Tensor]]) -> WeightDrift:
    """Of some tensors in both models; rows that one of two has more than the other are left out."""
    found = weight_difference((one[: len(other)], other[: len(one)]) for one, other in pairs)
    return WeightDrift(
        relative_frobenius=found.relative_frobenius,
        effective_rank=found.effective_rank,
        top8_share=found.top_share[8] if found.top_share else None,
        top16_share=found.top_share[16] if found.top_share else None,
        rounding_share=found.rounding_share,
    )
