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
    deployment: Deployment, jobs: Sequence[JobRecord], folder: Path, on_member: Callable[[], None]
) -> SharedRows:
    """Runs the base and every member over some texts of each of their data sets.

    Args:
        folder: scratch. on_member: is called after each.

    Raises:
        InputError: a checkpoint or a data set is no longer what it was, or too few tokens count in all members.
        ConflictError: an analysis kept too little.
    """
    folder.mkdir(parents=True)
    texts = _texts(deployment, jobs, folder)
    read: list[Batch] = []
    kept: Tensor | None = None
    layers = 0
    for number, job in enumerate(jobs):
        inside = folder / f"pair-{number}"
        inside.mkdir()
        found = finished_pair(deployment, job, inside, _opened)
        spec = found.pair.tokenization
        if not read:
            read, layers = _batches(spec, texts), spec.states.layers
        counted = _stored(found, read, folder, number, with_base=kept is None)
        kept = counted if kept is None else kept & counted
        shutil.rmtree(inside)
        on_member()
    if kept is None or int(kept.sum()) < MIN_ROWS:
        raise InputError("too few tokens count in the analyses of all members")
    chosen = kept.nonzero()[:TOKENS, 0]
    owners = torch.cat(
        [torch.tensor(one.indices)[:, None].expand_as(one.real)[one.attention_mask.bool()] for one in read]
    )
    _, numbers = owners[chosen].unique(return_inverse=True)
    count = int(numbers.max()) + 1
    return SharedRows(count, layers, numbers % group_count(count), chosen, folder, len(jobs))


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


def _batches(spec: TokenizationSpec, texts: Sequence[list[Text]]) -> list[Batch]:
    """The first texts of each data set, as many tokens of each, and a tenth more, as some do not count."""
    each = -(-TOKENS * 11 // 10 // len(texts))
    chosen = [text for some in texts for text in spec.within(some, each)[0]]
    return list(batches(spec.tokenizer, chosen, BATCH_TEXTS, spec.length, BATCH_TOKENS))


def _opened(base: Checkpoint, tuned: Checkpoint, tokenizer: PreTrainedTokenizerBase, length: int) -> Pair | LayeredPair:
    """Block by block where the models are large and can be read so."""
    if sum(path.stat().st_size for path in base.light.glob("*.safetensors")) > LAYERED_BYTES:
        try:
            return layered_pair(base, tuned, tokenizer, length)
        except NotBlockwise:
            pass
    return load_pair(base, tuned, tokenizer, length)


def _stored(found: FinishedPair, read: Sequence[Batch], folder: Path, number: int, with_base: bool) -> Tensor:
    """Writes a member's rows of all tokens of the batches; which of them count in its analysis, [T] bool."""
    real = [without_first(batch.real, found.pair.tokenization.causal)[batch.attention_mask.bool()] for batch in read]
    counts, inliers = torch.cat(real), found.pair.tokenization.rule
    base, tuned = dict[str, Tensor](), dict[str, Tensor]()
    for layer, rows, other in _layers(found.pair, read):
        counts &= rows.norm(dim=-1) <= inliers.base_limits[layer]
        counts &= other.norm(dim=-1) <= inliers.tuned_limits[layer]
        tuned[str(layer)] = other
        if with_base:
            base[str(layer)] = rows
    if with_base:
        save_file(base, _file(folder, -1))
    save_file(tuned, _file(folder, number))
    return counts


def _layers(pair: Pair | LayeredPair, read: Sequence[Batch]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Layer, and the rows of the base and the tuned model there, [T, D] float32 each."""
    masks = [batch.attention_mask.bool() for batch in read]

    def rows(states: Sequence[Tensor]) -> Tensor:
        return torch.cat([state.cpu()[mask].float() for state, mask in zip(states, masks, strict=True)]).contiguous()

    if isinstance(pair, Pair):
        sides = [pair.states(batch) for batch in read]
        for layer in range(len(sides[0][0])):
            yield layer, rows([base[layer] for base, _ in sides]), rows([tuned[layer] for _, tuned in sides])
        return
    walk = LayerWalk(pair, read, twin_batches=0, random_batches=0, seed=0)
    with closing(walk.layers(pair.layers - 1, lambda _: None, lambda _: None)) as layers:
        for standing in layers:
            yield standing.layer, rows(list(standing.base)), rows(list(standing.tuned))


def _file(folder: Path, number: int) -> Path:
    """Where a member's rows lie; -1: the base's."""
    return folder / ("base.safetensors" if number < 0 else f"member-{number}.safetensors")
