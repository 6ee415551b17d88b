"""Whether a pair runs block by block or whole: told by the estimate, and done by the worker."""

from __future__ import annotations

from layerdrift.contract.request import AnalysisRequest

LAYERED_BYTES = 256 << 20
"""Files of a model that are larger are read block by block."""


WRITTEN_BYTES = 2 << 30
"""Weights of one model that are put together on a CPU to complete prompts: larger ones take minutes for a few words."""


def runs_in_layers(request: AnalysisRequest, base_bytes: int) -> bool:
    """Whether the pair is large, and no fine-tune leaves more models that are compared whole."""
    return base_bytes > LAYERED_BYTES and not _leaves_more(request)


def _leaves_more(request: AnalysisRequest) -> bool:
    """Whether a fine-tune makes snapshots, or further fine-tunes for noise floors or a freeze sweep."""
    if request.finetune is None:
        return False
    analysis = request.analysis
    retrained = any(name != "numerical" for name in analysis.noise_floors) or analysis.freeze_sweep is not None
    return retrained or request.finetune.checkpoints > 0
