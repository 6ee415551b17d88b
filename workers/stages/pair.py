"""The two models of an analysis, in memory."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from layerdrift.contract.errors import InputError
from layerdrift.contract.report import ModelInfo, PartName, WeightDrift
from layerdrift.contract.request import AnalysisRequest
from workers.analysis.weights import weight_difference
from workers.models.device import best_device
from workers.models.loading import load_body, load_tokenizer
from workers.models.structure import blocks_of, is_causal, weight_groups
from workers.models.texts import Batch, hidden_states, usable_length
from workers.stages.gather import Reading, States
from workers.stages.resolve import Checkpoint


@dataclass(frozen=True)
class Pair:
    """Both models in memory, and how texts are read."""

    base: PreTrainedModel
    tuned: PreTrainedModel
    reading: Reading

    def states(self, batch: Batch) -> tuple[States, States]:
        """The states of both."""
        return hidden_states(self.base, batch), hidden_states(self.tuned, batch)

    @property
    def shape(self) -> tuple[int, int]:
        """L + 1 layers, D wide."""
        return len(blocks_of(self.base)) + 1, int(self.base.config.hidden_size)


def load_pair(request: AnalysisRequest, base: Checkpoint, tuned: Checkpoint) -> Pair:
    """Both models, on the best device.

    Raises:
        InputError: a model is broken, or the two do not fit together.
    """
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
    return Pair(base_model, tuned_model, Reading(tokenizer, length, is_causal(base_model)))


def model_info(model: PreTrainedModel, checkpoint: Checkpoint) -> ModelInfo:
    """What the report says of a model."""
    return ModelInfo(
        uri=checkpoint.uri,
        fingerprint=checkpoint.fingerprint,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        blocks=len(blocks_of(model)),
        hidden_size=model.config.hidden_size,
    )


def weight_drift(pair: Pair) -> list[dict[PartName, WeightDrift]]:
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
