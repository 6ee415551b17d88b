"""Pinned checkpoints fetched into the scratch folder, made plain and checked; adapters merged into their base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from backends.sources.checkpoint_files import fingerprint
from backends.sources.pinning import PinnedModel, Pins, Sources, shape_error
from workers.models.adapters import merge_adapter
from workers.models.loading import load_config
from workers.models.staging import stage_checkpoint
from workers.results.warnings import ReportWarning
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.progress import OnProgress


class Fetched(NamedTuple):
    """The checkpoints of a request, made plain; None without a tuned one."""

    base: Checkpoint
    tuned: Checkpoint | None
    warnings: list[ReportWarning]


def fetch_checkpoints(
    pins: Pins, sources: Sources, folder: Path, max_parameters: int, on_progress: OnProgress
) -> Fetched:
    """The pinned checkpoints in `folder`, adapters merged.

    Raises:
        InputError: one is unusable, or is no longer what was pinned.
    """
    on_progress(0.0, f"fetching {pins.base.uri}")
    base, warnings = _checkpoint(
        sources, pins.base, "/base/uri", folder / "base", max_parameters, _within(on_progress, 0.0, 0.4)
    )
    tuned = None
    if pins.tuned is not None:
        on_progress(0.4, f"fetching {pins.tuned.uri}")
        fetching = _within(on_progress, 0.4, 0.8)
        if pins.tuned.adapter:
            tuned, more = _adapted(sources, pins.tuned, base, folder, fetching)
        else:
            tuned, more = _checkpoint(sources, pins.tuned, "/tuned/uri", folder / "tuned", max_parameters, fetching)
        warnings = [*warnings, *more]
        _check_same_shape(base, tuned, max_parameters)
    return Fetched(base, tuned, warnings)


def _within(on_progress: OnProgress, start: float, end: float) -> Callable[[float], None]:
    """Maps a share of one part to a share of the stage."""
    return lambda share: on_progress(start + share * (end - start))


def _checkpoint(
    sources: Sources,
    pinned: PinnedModel,
    pointer: str,
    folder: Path,
    max_parameters: int,
    on_progress: Callable[[float], None],
) -> tuple[Checkpoint, list[ReportWarning]]:
    fingerprint = sources.fetch_model(pinned, pointer, folder, on_progress)
    warnings = stage_checkpoint(folder, pointer)
    load_config(folder, pointer, max_parameters)
    return Checkpoint(folder, pinned.uri, fingerprint), warnings


def _adapted(
    sources: Sources, pinned: PinnedModel, base: Checkpoint, folder: Path, on_progress: Callable[[float], None]
) -> tuple[Checkpoint, list[ReportWarning]]:
    """The base model with a PEFT adapter merged into it."""
    adapter, target = folder / "adapter", folder / "tuned"
    sources.fetch_model(pinned, "/tuned/uri", adapter, on_progress)
    warnings = merge_adapter(base.folder, adapter, target, "/tuned/uri", base.uri)
    return Checkpoint(target, pinned.uri, fingerprint(target)), warnings


def _check_same_shape(base: Checkpoint, tuned: Checkpoint, max_parameters: int) -> None:
    one = load_config(base.folder, "/base/uri", max_parameters)
    other = load_config(tuned.folder, "/tuned/uri", max_parameters)
    for what, name in (("blocks", "num_hidden_layers"), ("hidden width", "hidden_size")):
        sizes = [getattr(config.get_text_config(), name, None) for config in (one, other)]
        if sizes[0] != sizes[1]:
            raise shape_error(what, *sizes)
