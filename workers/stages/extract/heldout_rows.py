"""Rows of compared tokens, set aside in a bounded scratch: autoencoders are measured on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

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
    """Rows of compared tokens, on which autoencoders are measured, and the words around them."""

    rows: ActivationStore
    contexts: Contexts

    def add(self, batch: Batch, rows: Rows) -> None:
        """Takes the token rows of a batch, until there are enough."""
        if not self.rows.full:
            self.rows.add(joined(*rows))
            self.contexts.add(batch)


def heldout_rows(context: StageContext, tokenization: TokenizationSpec, labels: list[str | None]) -> HeldoutRows | None:
    """A place for them; None where no autoencoders are asked for."""
    if context.request.analysis.sae is None:
        return None
    limit = sae_bytes(context.request, context.scratch_bytes) * HELDOUT_SHARE
    rows = row_store(tokenization, context.folder / "heldout", HELDOUT_ROWS, limit)
    return HeldoutRows(rows, Contexts(tokenization.tokenizer, labels, tokenization.units))


def sae_bytes(request: AnalysisRequest, scratch_bytes: float) -> float:
    """What the pair's rows may take of the scratch."""
    sae = request.analysis.sae
    return scratch_bytes / CONTROL_BYTES if sae is not None and sae.random_weights else scratch_bytes


def row_store(tokenization: TokenizationSpec, folder: Path, rows: int, limit_bytes: float) -> ActivationStore:
    """A store of rows of both models, so many or as many as fit."""
    sites, width = tokenization.states.layers, tokenization.states.width
    bytes_per_row = 2 * sites * width * torch.bfloat16.itemsize
    return ActivationStore(folder, max_rows=min(rows, int(limit_bytes // bytes_per_row)))
