"""Whether a pair runs block by block or whole: told by the estimate, and done by the worker."""

from __future__ import annotations

from layerdrift.contract.request import AnalysisRequest

LAYERED_BYTES = 256 << 20
"""Files of a model that are larger are read block by block."""


WRITTEN_BYTES = 2 << 30
"""Weights of one model that are put together on a CPU to complete prompts: larger ones take minutes for a few words."""


def runs_in_layers(request: AnalysisRequest, base_bytes: int) -> bool:
    """Whether the pair is large, and no fine-tune needs whole models."""
    return base_bytes > LAYERED_BYTES and request.finetune is None
