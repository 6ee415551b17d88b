"""What chance alone gives: pairs of models that differ by nothing that was learnt, measured like the real pair."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from layerdrift.contract.report import Null, ReportWarning, ViewName
from layerdrift.contract.request import NullName
from workers.analysis.geometry import Geometry, PairDistances
from workers.analysis.moments import NotFinite
from workers.analysis.similarity import SiteSimilarity, similarities
from workers.models.texts import Batch, hidden_states
from workers.stages.gather import Gathering, Reading, States, StatesOf

NULL_TOKENS = 20_000
"""Tokens that a null is measured on: debiased measures do not depend on how many there are."""

DESCRIPTIONS: dict[NullName, str] = {
    "numerical": "the base model against itself in bfloat16, in other batches",
    "reseed": "the tuned model against a second fine-tune with another seed",
    "label_shuffle": "the base model against a fine-tune of as many steps on shuffled labels",
}


@dataclass(frozen=True)
class MeasuredNull:
    """A null's similarities by view and layer, and its geometry by layer."""

    null: Null
    similarity: dict[ViewName, list[SiteSimilarity]]
    geometry: list[Geometry]


def measured_null(
    name: NullName,
    reading: Reading,
    texts: list[str],
    states: Callable[[Batch], tuple[States, States]],
    tick: Callable[[float], None],
) -> MeasuredNull | ReportWarning:
    """Runs both models of a null over the texts; a warning where one of them overflows.

    Args:
        texts: the analysed ones.
        states: of both models on a batch.
    """
    try:
        gathering = gathered_pair(reading, texts, states, tick)
        moments = gathering.moments()
    except NotFinite as error:
        message = f"{DESCRIPTIONS[name]}: {error}; drift is not compared with it"
        return ReportWarning(code="null_not_computed", message=message)
    sample = gathering.text_sample()
    everything = torch.ones(len(sample.texts), dtype=torch.bool)
    return MeasuredNull(
        null=Null(name=name, description=DESCRIPTIONS[name], tokens=moments["token"].n),
        similarity={view: similarities(found) for view, found in moments.items()},
        geometry=[PairDistances(base, tuned).geometry(everything) for base, tuned in zip(*sample.rows, strict=True)],
    )


def gathered_pair(
    reading: Reading,
    texts: list[str],
    states: Callable[[Batch], tuple[States, States]],
    tick: Callable[[float], None],
) -> Gathering:
    """Runs two models over texts until NULL_TOKENS are seen; NotFinite where one of them overflows."""
    gathering = Gathering(reading.causal, seed=0, groups={})
    read = 0
    for group, batch in reading.grouped(texts):
        gathering.add(group, batch, *states(batch))
        read += len(batch.indices)
        tick(max(read / len(texts), gathering.tokens / NULL_TOKENS))
        if gathering.tokens >= NULL_TOKENS:
            break
    return gathering


def numerical_twin(model: PreTrainedModel) -> StatesOf:
    """The same model in bfloat16, run on each batch in two halves with paddings of their own."""
    twin = copy.deepcopy(model).to(torch.bfloat16)  # type: ignore[arg-type]

    def states(batch: Batch) -> States:
        rows, length = batch.input_ids.shape
        found: States = []
        for half in (torch.arange(1, rows, 2), torch.arange(0, rows, 2)):
            if not len(half):
                continue
            longest = int(batch.attention_mask[half].sum(1).max())
            part = Batch(
                batch.input_ids[half, :longest],
                batch.attention_mask[half, :longest],
                batch.real[half, :longest],
                [batch.indices[index] for index in half.tolist()],
            )
            layers = hidden_states(twin, part)
            if not found:
                found = [torch.zeros(rows, length, layer.shape[2]) for layer in layers]
            for whole, layer in zip(found, layers, strict=True):
                whole[half, :longest] = layer.float()
        return found

    return states
