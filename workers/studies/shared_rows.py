"""Rows of the same tokens in the base and in every member of a study, kept on disk, read layer by layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from backends.deployment import Deployment
from backends.estimates.execution import LAYERED_BYTES
from backends.jobs.records import JobRecord
from layerdrift.contract.errors import InputError
from workers.analysis.similarity import MIN_ROWS
from workers.finished_pairs import FinishedPair, finished_pair
from workers.models.device import give_memory_back
from workers.models.inliers import without_first
from workers.models.structure import NotBlockwise
from workers.models.texts import Batch, Text, batches
from workers.stages.common.context import StageContext
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.layered_pair import LayeredPair, layered_pair
from workers.stages.common.model_pair import Pair, load_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS, TokenizationSpec, group_count
from workers.stages.extract.layer_walk import LayerWalk
from workers.stages.resolve.stage import resolve

TOKENS = 1_000
"""Tokens that members are compared on, of all data sets together."""


@dataclass(frozen=True)
class SharedRows:
    """Rows at every layer. groups: [N], of texts that are left out together. kept: which of the stored rows count."""

    texts: int
    layers: int
    groups: Tensor
    kept: Tensor
    folder: Path
    members: int

    def at(self, layer: int) -> tuple[Tensor, Tensor]:
        """The base's rows [N, D] and the members' [M, N, D] at a layer."""
        found = [self._read(number, layer) for number in range(-1, self.members)]
        return found[0], torch.stack(found[1:])

    def _read(self, number: int, layer: int) -> Tensor:
        with safe_open(_file(self.folder, number), "pt") as file:
            rows: Tensor = file.get_tensor(str(layer))
        return rows[self.kept]


def shared_rows(
    deployment: Deployment, jobs: Sequence[JobRecord], folder: Path, on_step: Callable[[], None]
) -> SharedRows:
    """Runs the base and every member over some texts of each of their data sets.

    Args:
        folder: scratch. on_step: is called after every layer of each.

    Raises:
        InputError: a checkpoint or a data set is no longer what it was, or too few tokens count in all members.
        ConflictError: an analysis kept too little.
    """
    folder.mkdir(parents=True)
    every = _texts(deployment, jobs, folder)
    read: list[Batch] = []
    places, owners, kept = torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0)
    layers = 0
    for number, job in enumerate(jobs):
        inside = folder / f"pair-{number}"
        inside.mkdir()
        found = finished_pair(deployment, job, inside, _opened)
        spec = found.pair.tokenization
        if not read:
            texts = _first(spec, every)
            read = list(
                batches(spec.tokenizer, [one for some in texts for one in some], BATCH_TEXTS, spec.length, BATCH_TOKENS)
            )
            places, owners = _candidates(read, spec.causal, [len(some) for some in texts])
            kept, layers = torch.ones(len(places), dtype=torch.bool), spec.states.layers
        kept &= _stored(found, read, places, folder, number, on_step)
        del found
        give_memory_back()
        shutil.rmtree(inside)
    if int(kept.sum()) < MIN_ROWS:
        raise InputError("too few tokens count in the analyses of all members")
    chosen = _quotas(kept, owners[:, 0], TOKENS)
    _, numbers = owners[chosen, 1].unique(return_inverse=True)
    count = int(numbers.max()) + 1
    return SharedRows(count, layers, numbers % group_count(count), chosen, folder, len(jobs))


def _candidates(read: Sequence[Batch], causal: bool, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Tokens whose rows are stored: half as many again as are compared, since some do not count in all members.

    Args:
        sizes: of the data sets in texts, one after another.

    Returns:
        Their places among all tokens that are not padding, [C]; and of each its data set and text, [C, 2].
    """
    masks = [batch.attention_mask.bool() for batch in read]
    real = torch.cat([without_first(one.real, causal)[mask] for one, mask in zip(read, masks, strict=True)])
    of_text = [torch.tensor(one.indices)[:, None].expand_as(mask)[mask] for one, mask in zip(read, masks, strict=True)]
    texts = torch.cat(of_text)
    datasets = torch.bucketize(texts, torch.tensor(sizes).cumsum(0), right=True)
    places = _quotas(real, datasets, TOKENS * 3 // 2)
    return places, torch.stack([datasets[places], texts[places]], 1)


def _quotas(kept: Tensor, datasets: Tensor, tokens: int) -> Tensor:
    """The first tokens that are kept, [T] bool, as many of each data set as it has, `tokens` at most in all."""
    numbers = datasets.unique().tolist()
    quota = -(-tokens // len(numbers))
    parts = [((datasets == number) & kept).nonzero()[:quota, 0] for number in numbers]
    return torch.cat(parts).sort().values[:tokens]


def _texts(deployment: Deployment, jobs: Sequence[JobRecord], folder: Path) -> list[list[Text]]:
    """The analysed texts of each data set, as the first member that has it read them."""
    found: dict[str, list[Text]] = {}
    for job in jobs:
        name = job.pins.dataset.model_dump_json() + job.request.dataset.model_dump_json()
        if name in found:
            continue
        inside = folder / "resolved"
        inside.mkdir()
        context = StageContext(request=job.request, folder=inside, scratch_bytes=0.0, on_progress=lambda *_, **__: None)
        sources, limit = deployment.sources.of(job.tenant), deployment.settings.max_parameters
        resolved = resolve(context, job.pins.model_copy(update={"benign": None}), sources, limit)
        found[name] = [row.content for row in resolved.split.analysed]
        shutil.rmtree(inside)
    return list(found.values())


def _first(spec: TokenizationSpec, texts: Sequence[list[Text]]) -> list[list[Text]]:
    """The first texts of each data set: half as many tokens again as are compared, since some do not count."""
    each = -(-TOKENS * 3 // 2 // len(texts))
    return [spec.within(some, each)[0] for some in texts]


def _opened(base: Checkpoint, tuned: Checkpoint, tokenizer: PreTrainedTokenizerBase, length: int) -> Pair | LayeredPair:
    """Block by block where the models are large and can be read so."""
    if sum(path.stat().st_size for path in base.light.glob("*.safetensors")) > LAYERED_BYTES:
        try:
            return layered_pair(base, tuned, tokenizer, length)
        except NotBlockwise:
            pass
    return load_pair(base, tuned, tokenizer, length)


def _stored(
    found: FinishedPair, read: Sequence[Batch], places: Tensor, folder: Path, number: int, on_step: Callable[[], None]
) -> Tensor:
    """Writes a member's rows, and the base's with those of the first; which of them count in its analysis, [C] bool."""
    inliers = found.pair.tokenization.rule
    counts = torch.ones(len(places), dtype=torch.bool)
    base, tuned = dict[str, Tensor](), dict[str, Tensor]()
    for layer, rows, other in _layers(found.pair, read, places):
        counts &= rows.norm(dim=-1) <= inliers.base_limits[layer]
        counts &= other.norm(dim=-1) <= inliers.tuned_limits[layer]
        tuned[str(layer)] = other
        if number == 0:
            base[str(layer)] = rows
        on_step()
    if number == 0:
        save_file(base, _file(folder, -1))
    save_file(tuned, _file(folder, number))
    return counts


def _layers(pair: Pair | LayeredPair, read: Sequence[Batch], places: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Layer, and the rows of the base and the tuned model there, [C, D] float32 each."""
    masks = [batch.attention_mask.bool() for batch in read]
    ends = torch.tensor([int(mask.sum()) for mask in masks]).cumsum(0)
    batch_of = torch.bucketize(places, ends, right=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    inside = [places[batch_of == number] - starts[number] for number in range(len(read))]

    def of_batch(state: Tensor, number: int) -> Tensor:
        return state.cpu()[masks[number]][inside[number]].float()

    if isinstance(pair, Pair):
        parts = [
            [[of_batch(state, number) for state in states] for states in pair.states(batch)]
            for number, batch in enumerate(read)
        ]
        for layer in range(pair.tokenization.states.layers):
            yield layer, torch.cat([part[0][layer] for part in parts]), torch.cat([part[1][layer] for part in parts])
        return
    walk = LayerWalk(pair, read, twin_batches=0, random_batches=0, seed=0)
    with closing(walk.layers(pair.layers - 1, lambda _: None, lambda _: None)) as layers:
        for standing in layers:
            base, tuned = (
                torch.cat([of_batch(state, number) for number, state in enumerate(states)])
                for states in (standing.base, standing.tuned)
            )
            yield standing.layer, base, tuned


def _file(folder: Path, number: int) -> Path:
    """Where a member's rows lie; -1: the base's."""
    return folder / ("base.safetensors" if number < 0 else f"member-{number}.safetensors")
