"""Rows of compared tokens, set aside in a bounded scratch: autoencoders are measured on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from workers.analysis.streams import Rows
from workers.models.texts import Batch
from workers.scratch import ActivationStore
from workers.stages.common.context import StageContext
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.common.site_layout import joined
from workers.stages.extract.contexts import Contexts

HELDOUT_ROWS = 20_000

TRAIN_SHARE, HELDOUT_SHARE = 0.5, 0.1
"""Of the scratch; measured rows may be written twice, and files have headers, so the shares leave something over."""

CONTROL_BYTES = 1.5
"""A third model's rows take half as much again as the pair's."""


@dataclass(frozen=True)
class HeldoutRows:
    """Rows of compared tokens, on which autoencoders are measured, and the words around them.

    layers: the models' layers that have autoencoders, in order; rows are stored of these alone.
    """

    rows: ActivationStore
    contexts: Contexts
    layers: list[int]

    def add(self, batch: Batch, rows: Rows) -> None:
        """Takes the token rows of a batch, until there are enough."""
        if not self.rows.full:
            self.rows.add(joined(rows.base[self.layers], rows.tuned[self.layers]))
            self.contexts.add(batch)


def heldout_rows(context: StageContext, tokenization: TokenizationSpec, labels: list[str | None]) -> HeldoutRows | None:
    """A place for them; None where no autoencoders are asked for.

    Raises:
        InputError: the models do not have the layers that are asked for.
    """
    sae = context.request.analysis.sae
    if sae is None:
        return None
    try:
        layers = sae.layers_of(tokenization.states.layers)
    except ValueError as error:
        raise InputError.at("/analysis/sae/layers", str(error)) from error
    limit = sae_bytes(context.request, context.scratch_bytes) * HELDOUT_SHARE
    rows = row_store((len(layers), tokenization.states.width), context.folder / "heldout", HELDOUT_ROWS, limit)
    return HeldoutRows(rows, Contexts(tokenization.tokenizer, labels, tokenization.units), layers)


def sae_bytes(request: AnalysisRequest, scratch_bytes: float) -> float:
    """What the pair's rows may take of the scratch."""
    sae = request.analysis.sae
    return scratch_bytes / CONTROL_BYTES if sae is not None and sae.random_weights else scratch_bytes


def row_store(shape: tuple[int, int], folder: Path, rows: int, limit_bytes: float) -> ActivationStore:
    """A store of rows of both models, so many or as many as fit; `shape`: of one model's, how many layers and D."""
    bytes_per_row = 2 * math.prod(shape) * torch.bfloat16.itemsize
    return ActivationStore(folder, max_rows=min(rows, int(limit_bytes // bytes_per_row)))
