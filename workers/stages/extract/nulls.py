"""Noise floors: pairs of models that differ by rounding, seed or shuffled labels alone, measured like the real pair."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from layerdrift.contract.names import ViewName
from layerdrift.contract.request import NoiseFloorName
from workers.analysis.geometry import Geometry, PairDistances
from workers.analysis.moments import NotFinite, row_cosines
from workers.analysis.similarity import SiteSimilarity, similarities
from workers.models.derived_blocks import dithered
from workers.models.device import FATAL
from workers.models.loading import load_body, random_copy
from workers.models.states import StateReader
from workers.models.texts import Batch, Text
from workers.results.similarity import NoiseFloor
from workers.results.warnings import ReportWarning
from workers.stages.common.model_pair import Pair
from workers.stages.common.moment_accumulator import MomentAccumulator, States, StatesOf, TokenizationSpec, token_rows
from workers.stages.common.progress import Spans
from workers.stages.finetune.stage import FineTuned

NULL_TOKENS = 10_000
"""Tokens that a null is measured on: debiased measures do not depend on how many there are."""

LEFT_TOKENS = 5_000
"""Tokens that the base model is compared on with a copy of random weights: a reference, which needs no third digit."""

DESCRIPTIONS: dict[NoiseFloorName, str] = {
    "numerical": "the base model against itself in bfloat16, weights perturbed by up to 0.65 of the bfloat16 spacing",
    "reseed": "the tuned model against a second fine-tune with another seed: the variation between seeds",
    "label_shuffle": "the base model against an equally long fine-tune on shuffled labels",
}
RANDOM_SEED = 1_000_003
"""Added to the request's seed for random weights, so that they are not those that a model may have started from."""

NOTHING_LEFT = "the base model against a copy of itself with random weights"


@dataclass(frozen=True)
class MeasuredNull:
    """A null's similarities by view and layer, and its geometry by layer."""

    null: NoiseFloor
    similarity: dict[ViewName, list[SiteSimilarity]]
    geometry: list[Geometry]


@dataclass(frozen=True)
class SeedChanges:
    """Sums over the tokens of each group of texts, of the changes d that K fine-tunes made to them, [G, L + 1, ...].

    products: [..., K, K], of d_i · d_j. cosines: [...], of the cosines of all pairs, mean over the pairs. counts: [G].
    """

    products: Tensor
    cosines: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Nulls:
    """What was measured; warnings for what could not be.

    seeds: where there are further fine-tunes. random_weights_drift: by layer, 1 - CKA of the base model's tokens and
    those of a copy with random weights; None where it has no meaning.
    """

    measured: list[MeasuredNull]
    seeds: SeedChanges | None
    random_weights_drift: list[float | None]
    warnings: list[ReportWarning]


NUMERICAL, RANDOM_WEIGHTS = "the numerical resolution", "tokens of random weights"
OF_FINETUNES = {"reseed": "tokens of other seeds", "label_shuffle": "tokens of shuffled labels"}
"""Spans of the progress, each with its null."""


def null_costs(asked: Sequence[NoiseFloorName]) -> dict[str, float]:
    """What each null costs, in passes of one model, by the name of its span."""
    passes = {"reseed": 2.0, "label_shuffle": 1.0}
    return {NUMERICAL: 1.0, RANDOM_WEIGHTS: 0.5} | {
        OF_FINETUNES[name]: cost for name, cost in passes.items() if name in asked
    }


def nulls_of(pair: Pair, tuned: FineTuned | None, texts: Sequence[Text], seed: int, spans: Spans) -> Nulls:
    """The numerical resolution, what random weights leave, and what the fine-tune left further models for.

    Args:
        seed: of the random weights.
    """
    reader = pair.tokenization.states
    found = [_numerical_null(pair, texts, spans.span(NUMERICAL))]
    random_weights_drift, warnings = _random_weights_drift(pair, texts, seed, spans.span(RANDOM_WEIGHTS))
    seeds = None
    if tuned is not None and tuned.reseeds:
        others = [load_body(one.folder, "/finetune", pair.base.device) for one in tuned.reseeds]
        accumulator = _SeedAccumulator(pair, others, pair.tokenization.groups_of(len(texts)))
        on_progress = spans.span(OF_FINETUNES["reseed"])
        found.append(measured_null("reseed", pair.tokenization, texts, accumulator.states, on_progress))
        seeds = accumulator.found()
        del others
    if tuned is not None and "label_shuffle" in tuned.retrained:
        other = load_body(tuned.retrained["label_shuffle"].folder, "/finetune", pair.base.device)
        states = against(pair, states_of(reader, other))
        on_progress = spans.span(OF_FINETUNES["label_shuffle"])
        found.append(measured_null("label_shuffle", pair.tokenization, texts, states, on_progress))
    return Nulls(
        [null for null in found if isinstance(null, MeasuredNull)],
        seeds,
        random_weights_drift,
        [*(null for null in found if isinstance(null, ReportWarning)), *warnings],
    )


def _random_weights_drift(
    pair: Pair, texts: Sequence[Text], seed: int, on_progress: Callable[[float], None]
) -> tuple[list[float | None], list[ReportWarning]]:
    """What a drift would be of a model in which nothing is left of the base model but its architecture."""
    reader = pair.tokenization.states
    try:
        states = against(pair, states_of(reader, random_copy(pair.base, RANDOM_SEED + seed)))
        moments = accumulate_pair(pair.tokenization, texts, states, on_progress, LEFT_TOKENS).moments()["token"]
    except (NotFinite, torch.OutOfMemoryError) as error:  # a third model may be one too many: a scale is no necessity
        message = f"{NOTHING_LEFT}: {str(error).splitlines()[0]}; drift is not reported on this scale"
        return [None] * pair.shape[0], [ReportWarning(code="noise_floor_not_computed", message=message)]
    ckas = [site.cka for site in similarities(moments)]
    return [None if cka is None else 1 - cka for cka in ckas], []


def _numerical_null(
    pair: Pair, texts: Sequence[Text], on_progress: Callable[[float], None]
) -> MeasuredNull | ReportWarning:
    """The base model against itself in bfloat16; a warning where it does not run in that precision."""
    reader = pair.tokenization.states
    try:
        states = against(pair, numerical_twin(reader, pair.base))
        return measured_null("numerical", pair.tokenization, texts, states, on_progress)
    except FATAL:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        message = (
            f"{DESCRIPTIONS['numerical']}: the model does not run this way ({reason}); drift is not compared with it"
        )
        return ReportWarning(code="noise_floor_not_computed", message=message)


def measured_null(
    name: NoiseFloorName,
    tokenization: TokenizationSpec,
    texts: Sequence[Text],
    states: Callable[[Batch], tuple[States, States]],
    on_progress: Callable[[float], None],
) -> MeasuredNull | ReportWarning:
    """Runs both models of a null over the texts; a warning where one of them overflows.

    Args:
        texts: the analysed ones.
        states: of both models on a batch.
    """
    try:
        accumulator = accumulate_pair(tokenization, texts, states, on_progress)
        moments = accumulator.moments()
    except NotFinite as error:
        message = f"{DESCRIPTIONS[name]}: {error}; drift is not compared with it"
        return ReportWarning(code="noise_floor_not_computed", message=message)
    sample = accumulator.text_sample()
    return MeasuredNull(
        null=NoiseFloor(name=name, description=DESCRIPTIONS[name], tokens=moments["token"].n),
        similarity={view: similarities(found) for view, found in moments.items()},
        geometry=[PairDistances(base, tuned).geometry() for base, tuned in zip(*sample.rows, strict=True)],
    )


def accumulate_pair(
    tokenization: TokenizationSpec,
    texts: Sequence[Text],
    states: Callable[[Batch], tuple[States, States]],
    on_progress: Callable[[float], None],
    most: int = NULL_TOKENS,
) -> MomentAccumulator:
    """Runs two models over texts until `most` tokens are seen; NotFinite where one of them overflows."""
    accumulator = MomentAccumulator(tokenization.causal, seed=0, groups={}, roles=tokenization.roles)
    read = 0
    for group, batch in tokenization.grouped(texts):
        accumulator.add(group, tokenization.known(batch), *states(batch))
        read += len(batch.indices)
        on_progress(max(read / len(texts), accumulator.tokens / most))
        if accumulator.tokens >= most:
            break
    return accumulator


def numerical_twin(reader: StateReader, model: PreTrainedModel) -> StatesOf:
    """The same model in bfloat16, its weights dithered, run on each batch in two halves with paddings of their own."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(dithered(parameter, generator))
    twin.to(torch.bfloat16)  # type: ignore[arg-type]

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


def against(pair: Pair, other: StatesOf) -> Callable[[Batch], tuple[States, States]]:
    """The states of the base model and of another one on a batch of the compared texts."""
    return lambda batch: (pair.base_states(batch), other(batch))


def states_of(reader: StateReader, model: PreTrainedModel) -> StatesOf:
    """A model's states on a batch."""
    return lambda batch: reader.states(model, batch)


class _SeedAccumulator:
    """The states of the tuned model and of a fine-tune with another seed; on the way all seeds' changes are summed.

    Args:
        others: the further fine-tunes.
        groups: the group of each text, [N].
    """

    def __init__(self, pair: Pair, others: list[PreTrainedModel], groups: Tensor) -> None:
        self._pair = pair
        self._others = others
        self._groups = groups
        count, layers, seeds = int(groups.max()) + 1, pair.shape[0], 1 + len(others)
        self._products = torch.zeros(count, layers, seeds, seeds, dtype=torch.float64)
        self._cosines = torch.zeros(count, layers, dtype=torch.float64)
        self._counts = torch.zeros(count, dtype=torch.float64)

    def states(self, batch: Batch) -> tuple[States, States]:
        base, tuned = self._pair.remembered_states(batch)
        others = [self._pair.tokenization.states.states(other, batch) for other in self._others]
        group = int(self._groups[batch.indices[0]])
        known = self._pair.tokenization.known(batch)
        origin = token_rows(base, known)
        rows = [token_rows(states, known) for states in (tuned, *others)]
        for layer, start in enumerate(origin):  # one after another: float64 takes room
            changes = torch.stack([of_seed[layer].double() - start.double() for of_seed in rows])
            self._products[group, layer] += torch.einsum("itd,jtd->ij", changes, changes)
            pairs = [row_cosines(one, other).sum() for one, other in combinations(changes, 2)]
            self._cosines[group, layer] += torch.stack(pairs).mean()
        self._counts[group] += origin.shape[1]
        return tuned, others[0]

    def found(self) -> SeedChanges:
        seen = self._counts > 0
        return SeedChanges(self._products[seen], self._cosines[seen], self._counts[seen])
