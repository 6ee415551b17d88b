"""The pair of a finished analysis, opened again: to inspect texts, and to compare the members of studies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.storage import key_names
from backends.storage.artifact_names import CENTRES
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import ConflictError, NotFoundError
from workers.models.inliers import Inliers
from workers.models.texts import Batch
from workers.models.tokenizers import load_tokenizer
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.common.model_pair import Pair
from workers.stages.extract.layer_walk import LayerWalk
from workers.stages.resolve.fetching import fetch_checkpoints

OLD_LENGTH = 128
"""Tokens of a text that reports of version 0.1 read where the request named no length."""

Opener = Callable[[Checkpoint, Checkpoint, PreTrainedTokenizerBase, int], Pair | LayeredPair]
"""Makes a pair of two checkpoints, whole or layer by layer."""


@dataclass(frozen=True)
class FinishedPair:
    """A pair with the rule of its analysis for which tokens count. centres: what the analysis kept of its texts."""

    base: Checkpoint
    tuned: Checkpoint
    pair: Pair | LayeredPair
    centres: dict[str, Tensor]


def finished_pair(deployment: Deployment, record: JobRecord, folder: Path, opened: Opener) -> FinishedPair:
    """Fetches both models of an analysis into a folder and opens them.

    Raises:
        ConflictError: the analysis kept too little.
        InputError: a checkpoint is no longer what it was.
    """
    sources, limit = deployment.sources.of(record.tenant), deployment.settings.max_parameters
    pins = record.pins.model_copy(update={"benign": None})
    base, tuned, *_ = fetch_checkpoints(pins, sources, folder, limit, lambda *_: None)
    if tuned is None:
        prefix = key_names.checkpoint_prefix(record.owned)
        tuned = Checkpoint(fetched_objects(deployment.blobs, prefix, folder / "finetuned"), prefix, "")
    try:
        centres = load(deployment.blobs.get(key_names.artifact_object(record.owned, CENTRES)))
    except NotFoundError as error:
        raise ConflictError(f"{record.id} was analysed before text inspection existed; post it again") from error
    length = int(centres["length"]) if "length" in centres else record.request.analysis.max_length or OLD_LENGTH
    pair = opened(base, tuned, load_tokenizer(base.folder, "/base/uri"), length)
    inliers = Inliers.everywhere(pair.tokenization.causal, pair.tokenization.states.layers)
    if "base_limits" in centres:
        inliers = Inliers(pair.tokenization.causal, centres["base_limits"], centres["tuned_limits"])
    return FinishedPair(base, tuned, pair.with_inliers(inliers), centres)


def fetched_objects(blobs: BlobStore, prefix: str, target: Path) -> Path:
    """The objects directly under a prefix, in a folder."""
    target.mkdir(parents=True, exist_ok=True)
    for blob in blobs.list(prefix):
        name = blob.key.removeprefix(prefix)
        if "/" not in name:
            blobs.get_file(blob.key, target / name)
    return target


def states_of(pair: Pair | LayeredPair, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """The states of both models of a pair at every layer, L + 1 times [B, T, D] each."""
    if isinstance(pair, Pair):
        return pair.states(batch)
    base, tuned = list[Tensor](), list[Tensor]()
    walk = LayerWalk(pair, [batch], twin_batches=0, random_batches=0, seed=0)
    with closing(walk.layers(pair.layers - 1, lambda _: None, lambda _: None)) as layers:
        for standing in layers:
            base.append(standing.base[0].float().cpu())
            tuned.append(standing.tuned[0].float().cpu())
    return base, tuned
