"""What chance alone gives: pairs of models that differ by nothing that was learnt, measured like the real pair."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from layerdrift.contract.report import Null, ReportWarning, ViewName
from layerdrift.contract.request import NullName
from workers.analysis.geometry import Geometry, PairDistances
from workers.analysis.moments import NotFinite, row_cosines
from workers.analysis.similarity import SiteSimilarity, similarities
from workers.models.loading import load_body
from workers.models.states import StateReader
from workers.models.texts import Batch, Text
from workers.stages.finetune import Tuned
from workers.stages.gather import Gathering, Reading, States, StatesOf, group_count, token_rows
from workers.stages.pair import Pair
from workers.stages.tick import SharedTicks

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


@dataclass(frozen=True)
class Consistency:
    """Cosines of the changes that two fine-tunes made to the same tokens: sums [G, L + 1] and counts [G] by group."""

    sums: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Nulls:
    """What was measured; consistency where there is a second fine-tune; warnings for what could not be measured."""

    measured: list[MeasuredNull]
    consistency: Consistency | None
    warnings: list[ReportWarning]


def nulls_of(pair: Pair, tuned: Tuned | None, texts: Sequence[Text], ticks: SharedTicks) -> Nulls:
    """The numerical null, and those that the fine-tune left models for."""
    reader = pair.reading.states
    found = [_numerical_null(pair, texts, ticks.next("the numerical null"))]
    consistency = None
    for name, checkpoint in (tuned.retrained if tuned else {}).items():
        other = load_body(checkpoint.folder, "/finetune", pair.base.device)
        tick = ticks.next(f"tokens of the null {name}")
        if name == "reseed":
            gathering = _ConsistencyGathering(pair, other, group_count(len(texts)))
            found.append(measured_null(name, pair.reading, texts, gathering.states, tick))
            consistency = gathering.found()
        else:
            states = against(reader, pair.base, states_of(reader, other))
            found.append(measured_null(name, pair.reading, texts, states, tick))
    return Nulls(
        [null for null in found if isinstance(null, MeasuredNull)],
        consistency,
        [null for null in found if isinstance(null, ReportWarning)],
    )


def _numerical_null(pair: Pair, texts: Sequence[Text], tick: Callable[[float], None]) -> MeasuredNull | ReportWarning:
    """The base model against itself in bfloat16; a warning where it does not run in that precision."""
    reader = pair.reading.states
    try:
        states = against(reader, pair.base, numerical_twin(reader, pair.base))
        return measured_null("numerical", pair.reading, texts, states, tick)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        message = f"{DESCRIPTIONS['numerical']}: the model does not run so ({reason}); drift is not compared with it"
        return ReportWarning(code="null_not_computed", message=message)


def measured_null(
    name: NullName,
    reading: Reading,
    texts: Sequence[Text],
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
    return MeasuredNull(
        null=Null(name=name, description=DESCRIPTIONS[name], tokens=moments["token"].n),
        similarity={view: similarities(found) for view, found in moments.items()},
        geometry=[PairDistances(base, tuned).geometry() for base, tuned in zip(*sample.rows, strict=True)],
    )


def gathered_pair(
    reading: Reading,
    texts: Sequence[Text],
    states: Callable[[Batch], tuple[States, States]],
    tick: Callable[[float], None],
) -> Gathering:
    """Runs two models over texts until NULL_TOKENS are seen; NotFinite where one of them overflows."""
    gathering = Gathering(reading.causal, seed=0, groups={})
    read = 0
    for group, batch in reading.grouped(texts):
        gathering.add(group, reading.known(batch), *states(batch))
        read += len(batch.indices)
        tick(max(read / len(texts), gathering.tokens / NULL_TOKENS))
        if gathering.tokens >= NULL_TOKENS:
            break
    return gathering


def numerical_twin(reader: StateReader, model: PreTrainedModel) -> StatesOf:
    """The same model in bfloat16, run on each batch in two halves with paddings of their own."""
    twin = copy.deepcopy(model).to(torch.bfloat16)  # type: ignore[arg-type]

    def states(batch: Batch) -> States:
        rows, length = batch.input_ids.shape
        found: States = []
        for half in (torch.arange(1, rows, 2), torch.arange(0, rows, 2)):
            if not len(half):
                continue
            longest = int(batch.attention_mask[half].sum(1).max())
            layers = reader.states(twin, batch.rows(half, longest))
            if not found:
                found = [torch.zeros(rows, length, layer.shape[2]) for layer in layers]
            for whole, layer in zip(found, layers, strict=True):
                whole[half, :longest] = layer.float()
        return found

    return states


def against(reader: StateReader, one: PreTrainedModel, other: StatesOf) -> Callable[[Batch], tuple[States, States]]:
    """The states of both on a batch."""
    return lambda batch: (reader.states(one, batch), other(batch))


def states_of(reader: StateReader, model: PreTrainedModel) -> StatesOf:
    """A model's states on a batch."""
    return lambda batch: reader.states(model, batch)


class _ConsistencyGathering:
    """The states of the tuned model and of a second fine-tune; the cosines of their changes are summed on the way."""

    def __init__(self, pair: Pair, other: PreTrainedModel, groups: int) -> None:
        self._pair = pair
        self._other = other
        self._sums = torch.zeros(groups, pair.shape[0], dtype=torch.float64)
        self._counts = torch.zeros(groups, dtype=torch.float64)

    def states(self, batch: Batch) -> tuple[States, States]:
        base, tuned = self._pair.states(batch)
        other = self._pair.reading.states.states(self._other, batch)
        group = batch.indices[0] % len(self._counts)
        batch = self._pair.reading.known(batch)
        origin = token_rows(base, batch).double()
        changes = [token_rows(states, batch).double() - origin for states in (tuned, other)]
        self._sums[group] += row_cosines(*changes).sum(1)
        self._counts[group] += origin.shape[1]
        return tuned, other

    def found(self) -> Consistency:
        seen = self._counts > 0
        return Consistency(self._sums[seen], self._counts[seen])
