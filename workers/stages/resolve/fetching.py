"""Pinned checkpoints fetched into the scratch folder, made plain and checked; adapters merged into their base."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from backends.sources.checkpoint_files import TOKENIZER_FILES, file_sha256, fingerprint
from backends.sources.checkpoint_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG
from backends.sources.pair_checks import BENIGN, shape_error
from backends.sources.pinning import PinnedModel, Pins, Sources
from layerdrift.contract.errors import InputError
from workers.models.adapters import merge_adapter, other_base, read_adapter
from workers.models.loading import load_config
from workers.models.staging import stage_checkpoint
from workers.results.warnings import ReportWarning
from workers.stages.common.inputs import Checkpoint, UnmergedAdapter
from workers.stages.common.progress import OnProgress


class Fetched(NamedTuple):
    """The checkpoints of a request, made plain; None without a tuned one, or a benign one."""

    base: Checkpoint
    tuned: Checkpoint | None
    warnings: list[ReportWarning]
    benign: Checkpoint | None = None


def fetch_checkpoints(
    pins: Pins,
    sources: Sources,
    folder: Path,
    max_parameters: int,
    on_progress: OnProgress,
    layered: Callable[[int], bool] = lambda _: False,
) -> Fetched:
    """The pinned checkpoints in `folder`; adapters are merged.

    Args:
        layered: whether a pair with so many bytes in the base's files runs block by block: then an adapter is merged
            where somebody asks for the merged weights.

    Raises:
        InputError: one is unusable, or is no longer what was pinned.
    """
    on_progress(0.0, f"fetching {pins.base.uri}")
    base, warnings = _checkpoint(
        sources, pins.base, "/base/uri", folder / "base", max_parameters, _within(on_progress, 0.0, 0.4)
    )
    found: dict[str, Checkpoint | None] = {"tuned": None, "benign": None}
    merging = not layered(sum(path.stat().st_size for path in base.light.glob("*.safetensors")))
    for name, pinned, pointer, start, end in (
        ("tuned", pins.tuned, "/tuned/uri", 0.4, 0.8),
        ("benign", pins.benign, BENIGN, 0.8, 0.95),
    ):
        if pinned is None:
            continue
        on_progress(start, f"fetching {pinned.uri}")
        fetching = _within(on_progress, start, end)
        if pinned.adapter:
            other, more = _adapted(sources, pinned, base, folder / name, pointer, fetching, merging and name == "tuned")
        else:
            other, more = _checkpoint(sources, pinned, pointer, folder / name, max_parameters, fetching)
        warnings = [*warnings, *more]
        _check_same_shape(base, other, max_parameters, pointer)
        found[name] = other
    return Fetched(base, found["tuned"], warnings, found["benign"])


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
    sources: Sources,
    pinned: PinnedModel,
    base: Checkpoint,
    target: Path,
    pointer: str,
    on_progress: Callable[[float], None],
    merging: bool,
) -> tuple[Checkpoint, list[ReportWarning]]:
    """The base model with a PEFT adapter merged into it, now or later; the adapter itself lies beside it."""
    adapter = target.with_name(f"{target.name}-adapter")
    sources.fetch_model(pinned, pointer, adapter, on_progress)
    if not merging:
        return _unmerged(pinned, base, adapter, target, pointer)
    warnings = merge_adapter(base.folder, adapter, target, pointer, base.uri)
    return Checkpoint(target, pinned.uri, fingerprint(target)), warnings


def _unmerged(
    pinned: PinnedModel, base: Checkpoint, adapter: Path, target: Path, pointer: str
) -> tuple[Checkpoint, list[ReportWarning]]:
    """The adapter as it is, beside the configuration of its base and its tokenizer."""
    files = read_adapter(adapter, pointer)
    target.mkdir()
    shutil.copyfile(base.light / CONFIG, target / CONFIG)
    for name in TOKENIZER_FILES:
        source = next((one / name for one in (adapter, base.light) if (one / name).exists()), None)
        if source is not None:
            shutil.copyfile(source, target / name)
    digest = hashlib.sha256(base.fingerprint.encode())
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        digest.update(f"{name} {file_sha256(adapter / name)}\n".encode())

    def merge(into: Path) -> object:
        return merge_adapter(base.folder, adapter, into, pointer, base.uri)

    found = Checkpoint(target, pinned.uri, digest.hexdigest(), UnmergedAdapter(adapter, merge))
    return found, other_base(files, base.light, base.uri)


def _check_same_shape(base: Checkpoint, tuned: Checkpoint, max_parameters: int, pointer: str) -> None:
    one = load_config(base.folder, "/base/uri", max_parameters)
    other = load_config(tuned.light, pointer, max_parameters)
    for what, name in (("blocks", "num_hidden_layers"), ("hidden width", "hidden_size")):
        sizes = [getattr(config.get_text_config(), name, None) for config in (one, other)]
        if sizes[0] != sizes[1]:
            raise shape_error(what, sizes[0], sizes[1], pointer)
    if pointer == BENIGN and type(one) is not type(other):
        raise InputError.at(pointer, f"a {other.model_type} cannot be a fine-tune of a {one.model_type}")
