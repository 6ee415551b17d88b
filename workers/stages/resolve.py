"""Stage `resolve`: fetches the checkpoints and the data set, checks them, and deals out the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from layerdrift.backends.sources import PinnedModel, Pins, Sources, fingerprint, shape_error
from layerdrift.backends.tables import Columns, Row, inline_rows, parse, read_lines, table_encoding
from layerdrift.contract.errors import InputError
from layerdrift.contract.report import ReportWarning
from layerdrift.contract.request import MIN_EXAMPLES, AnalysisRequest
from workers.models.adapters import merge_adapter
from workers.models.loading import load_config
from workers.stages.tick import Tick

FINETUNE_ANALYSED_SHARE = 0.3
"""The analysis takes at most this share of the rows, so that the fine-tune has the rest."""


HELD_OUT, MIN_HELD_OUT = 500, 50
"""Rows that a fine-tune's best weights are chosen by: spare ones, or a tenth of the training rows where too few are."""


PARQUET_ROWS = 4096


@dataclass(frozen=True)
class Split:
    """Rows by use; no row is in two of them.

    analysed: texts the models are compared on. train: rows of the fine-tune. spare: the others, for the autoencoders.
    held_out: rows that the fine-tune's best weights are chosen by.
    """

    analysed: list[Row]
    train: list[Row]
    spare: list[Row]
    held_out: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A staged checkpoint: its folder here, where it came from, and the hash of its files."""

    folder: Path
    uri: str
    fingerprint: str


@dataclass(frozen=True)
class Resolved:
    """What the other stages work on."""

    base: Checkpoint
    tuned: Checkpoint | None
    split: Split
    usable_rows: int
    dataset_sha256: str
    warnings: list[ReportWarning]


def resolve(
    request: AnalysisRequest, pins: Pins, sources: Sources, folder: Path, max_parameters: int, tick: Tick
) -> Resolved:
    """Fetches what was pinned into `folder`.

    Raises:
        InputError: something is unusable, or is no longer what was pinned.
    """
    base, tuned = fetch_checkpoints(pins, sources, folder, max_parameters, tick)
    tick(0.8, f"reading {pins.dataset.source}")
    rows, sha256 = _rows(request, pins, sources, folder)
    usable, warnings = distinct(rows)
    return Resolved(base, tuned, deal(usable, request), len(usable), sha256, warnings)


def fetch_checkpoints(
    pins: Pins, sources: Sources, folder: Path, max_parameters: int, tick: Tick
) -> tuple[Checkpoint, Checkpoint | None]:
    """The pinned checkpoints in `folder`, adapters merged; None without a tuned one.

    Raises:
        InputError: one is unusable, or is no longer what was pinned.
    """
    tick(0.0, f"fetching {pins.base.uri}")
    base = _checkpoint(sources, pins.base, "/base/uri", folder / "base", max_parameters, _within(tick, 0.0, 0.4))
    tuned = None
    if pins.tuned is not None:
        tick(0.4, f"fetching {pins.tuned.uri}")
        fetching = _within(tick, 0.4, 0.8)
        if pins.tuned.adapter:
            tuned = _adapted(sources, pins.tuned, base, folder, fetching)
        else:
            tuned = _checkpoint(sources, pins.tuned, "/tuned/uri", folder / "tuned", max_parameters, fetching)
        _check_same_shape(base, tuned, max_parameters)
    return base, tuned


def _within(tick: Tick, start: float, end: float) -> Callable[[float], None]:
    """A tick for a part of the stage."""
    return lambda share: tick(start + share * (end - start))


def _checkpoint(
    sources: Sources,
    pinned: PinnedModel,
    pointer: str,
    folder: Path,
    max_parameters: int,
    tick: Callable[[float], None],
) -> Checkpoint:
    fingerprint = sources.fetch_model(pinned, pointer, folder, tick)
    load_config(folder, pointer, max_parameters)
    return Checkpoint(folder, pinned.uri, fingerprint)


def _adapted(
    sources: Sources, pinned: PinnedModel, base: Checkpoint, folder: Path, tick: Callable[[float], None]
) -> Checkpoint:
    """The base model with a PEFT adapter merged into it."""
    adapter, target = folder / "adapter", folder / "tuned"
    sources.fetch_model(pinned, "/tuned/uri", adapter, tick)
    merge_adapter(base.folder, adapter, target, "/tuned/uri")
    return Checkpoint(target, pinned.uri, fingerprint(target))


def _check_same_shape(base: Checkpoint, tuned: Checkpoint, max_parameters: int) -> None:
    one = load_config(base.folder, "/base/uri", max_parameters)
    other = load_config(tuned.folder, "/tuned/uri", max_parameters)
    for what, name in (("blocks", "num_hidden_layers"), ("hidden width", "hidden_size")):
        if getattr(one, name) != getattr(other, name):
            raise shape_error(what, getattr(one, name), getattr(other, name))


def _rows(request: AnalysisRequest, pins: Pins, sources: Sources, folder: Path) -> tuple[list[Row], str]:
    labelled = request.finetune is not None
    if pins.dataset.sha256 is not None:
        return list(inline_rows(request.dataset)), pins.dataset.sha256
    path = folder / "dataset"
    if pins.dataset.file is None:
        raise ValueError("the data set is neither inline nor a file")
    sha256 = sources.fetch_dataset(pins.dataset, path)
    where, encoding = pins.dataset.source, table_encoding(pins.dataset.file.name)
    columns = Columns.of(request.dataset, labelled)
    if encoding.format == "parquet":
        return list(_parquet_rows(path, columns, where)), sha256
    lines = read_lines(path, encoding, sources.max_dataset_bytes, where)
    return list(parse(lines, encoding.format, columns, where)), sha256


def _parquet_rows(path: Path, columns: Columns, where: str) -> Iterator[Row]:
    """The rows of a Parquet file; its text column must hold strings, its labels strings, integers or truth values."""
    try:
        with pq.ParquetFile(path) as file:
            columns.require(file.schema_arrow.names, where)
            wanted = [name for name in (columns.text, columns.label) if name in file.schema_arrow.names]
            for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
                yield from parse((json.dumps(row) + "\n" for row in batch.to_pylist()), "jsonl", columns, where)
    except (pa.ArrowException, OSError, TypeError) as error:
        raise InputError.at("/dataset/uri", f"{where} cannot be read as Parquet: {error}") from error


def distinct(rows: list[Row]) -> tuple[list[Row], list[ReportWarning]]:
    """The first row of each text, blank ones left out; a text that stood twice could be tuned on and judged on."""
    filled = [row for row in rows if row.text.strip()]
    first = {row.text.strip(): row for row in reversed(filled)}
    usable = [row for row in filled if first[row.text.strip()] is row]
    warnings = []
    for code, count, what in (
        ("blank_texts", len(rows) - len(filled), "have a blank text"),
        ("repeated_texts", len(filled) - len(usable), "repeat the text of an earlier row"),
    ):
        if count:
            message = f"{count} of {len(rows)} rows {what} and were passed over"
            warnings.append(ReportWarning(code=code, message=message))
    return usable, warnings


def deal(rows: list[Row], request: AnalysisRequest) -> Split:
    """Deals out rows at random by the seed: analysed first, then the fine-tune's, then the spare ones.

    Raises:
        InputError: there are too few rows, or a label is missing or alone.
    """
    generator = torch.Generator().manual_seed(request.seed)
    shuffled = [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]
    wanted = request.dataset.max_examples
    tuning = request.finetune
    if tuning is None:
        _require(len(rows), MIN_EXAMPLES)
        return Split(shuffled[:wanted], [], shuffled[wanted:])
    _require(len(rows), 2 * MIN_EXAMPLES)
    analysed = min(wanted, max(MIN_EXAMPLES, int(FINETUNE_ANALYSED_SHARE * len(rows))))
    rest = shuffled[analysed:]
    train = rest if tuning.train_examples is None else rest[: tuning.train_examples]
    if tuning.train_examples is not None and len(train) < tuning.train_examples:
        raise InputError.at(
            "/finetune/train_examples",
            f"{tuning.train_examples} training rows were asked for, but {len(rows)} usable rows less {analysed} "
            f"analysed ones leave {len(rest)}",
        )
    if any(not row.label for row in rows):
        raise InputError.at("/dataset/label_column", "some rows have an empty label; fill it in or take them out")
    labels = {row.label for row in train}
    if len(labels) < 2:
        raise InputError.at(
            "/dataset/label_column", f"all training rows have the label {labels.pop()!r}; tuning needs two or more"
        )
    spare = rest[len(train) :]
    if tuning.keep == "last":
        return Split(shuffled[:analysed], train, spare)
    if len(spare) >= MIN_HELD_OUT:
        held_out = min(HELD_OUT, max(MIN_HELD_OUT, len(spare) // 4))
        return Split(shuffled[:analysed], train, spare[held_out:], spare[:held_out])
    kept = len(train) - min(HELD_OUT, len(train) // 10)
    return Split(shuffled[:analysed], train[:kept], spare, train[kept:])


def _require(count: int, least: int) -> None:
    if count < least:
        raise InputError.at("/dataset", f"the data set has {count} usable rows; at least {least} are needed")
