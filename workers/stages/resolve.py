"""Stage `resolve`: fetches the data set and the checkpoints, makes them plain, checks them, and deals out the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from backends.sources.pinning import PinnedModel, Pins, Sources, fingerprint, of_reference, shape_error
from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.report import ReportWarning
from layerdrift.contract.request import MIN_EXAMPLES, AnalysisRequest
from workers.models.adapters import merge_adapter
from workers.models.loading import load_config
from workers.models.staging import stage_checkpoint
from workers.models.texts import fitting_length
from workers.models.tokenizers import common_tokenizer
from workers.stages.dataset import read_dataset
from workers.stages.tick import Tick

FINETUNE_ANALYSED_SHARE = 0.3
"""The analysis takes at most this share of the rows, so that the fine-tune has the rest."""


LENGTH_TEXTS = 2_000
"""Texts whose lengths settle how many tokens of a text are read, where none is asked for."""

HELD_OUT, MIN_HELD_OUT = 500, 50
"""Rows that a fine-tune's best weights are chosen by: spare ones, or a tenth of the training rows where too few are."""


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
class ReferenceTexts:
    """Texts that forgetting is measured on; none is among those of the data set."""

    rows: list[Row]
    source: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A staged checkpoint: its folder here, where it came from, and the hash of its files."""

    folder: Path
    uri: str
    fingerprint: str


@dataclass(frozen=True)
class Resolved:
    """What the other stages work on.

    tokenizer: the base model's, for both. length: tokens of a text that are read, as far as the models have positions.
    units: of each analysed row, the number of its unit of rows that are nearly the same; None: all are alone.
    """

    base: Checkpoint
    tuned: Checkpoint | None
    tokenizer: PreTrainedTokenizerBase
    length: int
    split: Split
    usable_rows: int
    dataset_sha256: str
    warnings: list[ReportWarning]
    units: tuple[int, ...] | None = None
    reference: ReferenceTexts | None = None


def resolve(
    request: AnalysisRequest, pins: Pins, sources: Sources, folder: Path, max_parameters: int, tick: Tick
) -> Resolved:
    """Fetches what was pinned into `folder`.

    Raises:
        InputError: something is unusable, or is no longer what was pinned.
    """
    tick(0.0, f"reading {pins.dataset.source}")  # first: a column that is missing is known before gigabytes are copied
    labelled = request.finetune is not None
    dataset = read_dataset(request.dataset, pins.dataset, labelled, sources, folder / "dataset")
    usable, warnings = distinct(dataset.rows)
    split = deal(usable, request)
    reference = _reference(request, pins, sources, folder, usable)
    fetched = fetch_checkpoints(pins, sources, folder, max_parameters, tick)
    tuned = fetched.tuned.folder if fetched.tuned else None
    others = reference.rows if reference is not None else []
    common = common_tokenizer(fetched.base.folder, tuned, [row.content for row in (*usable, *others)])
    if common.differing:
        others = [row for number, row in enumerate(others, start=len(usable)) if number not in common.differing]
        usable = [row for number, row in enumerate(usable) if number not in common.differing]
        split = deal(usable, request)
    read = [row.content for row in split.analysed[:LENGTH_TEXTS]]
    return Resolved(
        base=fetched.base,
        tuned=fetched.tuned,
        tokenizer=common.tokenizer,
        length=request.analysis.max_length or fitting_length(common.tokenizer, read),
        split=split,
        usable_rows=len(usable),
        dataset_sha256=dataset.sha256,
        warnings=[*dataset.warnings, *warnings, *fetched.warnings, *common.warnings],
        units=units_of(split.analysed),
        reference=replace(reference, rows=others) if reference is not None else None,
    )


def _reference(
    request: AnalysisRequest, pins: Pins, sources: Sources, folder: Path, usable: list[Row]
) -> ReferenceTexts | None:
    """A random sample of the reference's texts that are not in the data set; None where none was given."""
    asked = request.dataset.reference
    if asked is None or pins.reference is None:
        return None
    with of_reference():
        found = read_dataset(asked, pins.reference, False, sources, folder / "reference")
        known = {_identity(row) for row in usable}
        rows = [row for row in distinct(found.rows)[0] if _identity(row) not in known]
        if len(rows) < MIN_EXAMPLES:
            detail = f"{len(rows)} texts of the reference are not also in dataset; at least {MIN_EXAMPLES} are needed"
            raise InputError.at("/dataset", detail)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(request.seed)).tolist()
    return ReferenceTexts([rows[index] for index in order[: asked.max_examples]], pins.reference.source, found.sha256)


def units_of(rows: Sequence[Row]) -> tuple[int, ...] | None:
    """The number of each row's unit, from 0 on as they come; None where no row names a group."""
    if all(row.group is None for row in rows):
        return None
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(_unit(row, place), len(numbers)) for place, row in enumerate(rows))


def _unit(row: Row, place: int) -> tuple[str | None, int]:
    """What rows of one unit have in common; a row without a group has nothing in common with any."""
    return row.group, place if row.group is None else -1


class Fetched(NamedTuple):
    """The checkpoints of a request, made plain; None without a tuned one."""

    base: Checkpoint
    tuned: Checkpoint | None
    warnings: list[ReportWarning]


def fetch_checkpoints(pins: Pins, sources: Sources, folder: Path, max_parameters: int, tick: Tick) -> Fetched:
    """The pinned checkpoints in `folder`, adapters merged.

    Raises:
        InputError: one is unusable, or is no longer what was pinned.
    """
    tick(0.0, f"fetching {pins.base.uri}")
    base, warnings = _checkpoint(
        sources, pins.base, "/base/uri", folder / "base", max_parameters, _within(tick, 0.0, 0.4)
    )
    tuned = None
    if pins.tuned is not None:
        tick(0.4, f"fetching {pins.tuned.uri}")
        fetching = _within(tick, 0.4, 0.8)
        if pins.tuned.adapter:
            tuned, more = _adapted(sources, pins.tuned, base, folder, fetching)
        else:
            tuned, more = _checkpoint(sources, pins.tuned, "/tuned/uri", folder / "tuned", max_parameters, fetching)
        warnings = [*warnings, *more]
        _check_same_shape(base, tuned, max_parameters)
    return Fetched(base, tuned, warnings)


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
) -> tuple[Checkpoint, list[ReportWarning]]:
    fingerprint = sources.fetch_model(pinned, pointer, folder, tick)
    warnings = stage_checkpoint(folder, pointer)
    load_config(folder, pointer, max_parameters)
    return Checkpoint(folder, pinned.uri, fingerprint), warnings


def _adapted(
    sources: Sources, pinned: PinnedModel, base: Checkpoint, folder: Path, tick: Callable[[float], None]
) -> tuple[Checkpoint, list[ReportWarning]]:
    """The base model with a PEFT adapter merged into it."""
    adapter, target = folder / "adapter", folder / "tuned"
    sources.fetch_model(pinned, "/tuned/uri", adapter, tick)
    warnings = merge_adapter(base.folder, adapter, target, "/tuned/uri", base.uri)
    return Checkpoint(target, pinned.uri, fingerprint(target)), warnings


def _check_same_shape(base: Checkpoint, tuned: Checkpoint, max_parameters: int) -> None:
    one = load_config(base.folder, "/base/uri", max_parameters)
    other = load_config(tuned.folder, "/tuned/uri", max_parameters)
    for what, name in (("blocks", "num_hidden_layers"), ("hidden width", "hidden_size")):
        sizes = [getattr(config.get_text_config(), name, None) for config in (one, other)]
        if sizes[0] != sizes[1]:
            raise shape_error(what, *sizes)


def distinct(rows: list[Row]) -> tuple[list[Row], list[ReportWarning]]:
    """The first row of each text, or of each pair, blank ones left out; one that stood twice could be on both sides."""
    filled = [row for row in rows if row.text.strip() and (row.pair is None or row.pair.strip())]
    first = {_identity(row): row for row in reversed(filled)}
    usable = [row for row in filled if first[_identity(row)] is row]
    paired = any(row.pair is not None for row in rows)
    warnings = []
    for code, count, what in (
        ("blank_texts", len(rows) - len(filled), f"have a blank text{' or a blank second text' if paired else ''}"),
        ("repeated_texts", len(filled) - len(usable), f"repeat the {'pair' if paired else 'text'} of an earlier row"),
    ):
        if count:
            message = f"{count} of {len(rows)} rows {what} and were skipped"
            warnings.append(ReportWarning(code=code, message=message))
    return usable, warnings


def _identity(row: Row) -> tuple[str, str | None]:
    return row.text.strip(), None if row.pair is None else row.pair.strip()


def deal(rows: list[Row], request: AnalysisRequest) -> Split:
    """Deals out rows at random by the seed: analysed first, then the fine-tune's, then the spare ones.

    Rows of one group stay together: a use gets a few rows more rather than a part of a group.

    Raises:
        InputError: there are too few rows, or a label is missing or alone.
    """
    generator = torch.Generator().manual_seed(request.seed)
    shuffled = _shuffled(rows, generator)
    wanted = _whole(shuffled, request.dataset.max_examples)
    tuning = request.finetune
    if tuning is None:
        _require(len(rows), MIN_EXAMPLES)
        return Split(shuffled[:wanted], [], shuffled[wanted:])
    _require(len(rows), 2 * MIN_EXAMPLES)
    analysed = min(wanted, _whole(shuffled, max(MIN_EXAMPLES, int(FINETUNE_ANALYSED_SHARE * len(rows)))))
    rest = shuffled[analysed:]
    train = rest if tuning.train_examples is None else rest[: _whole(rest, tuning.train_examples)]
    if tuning.train_examples is not None and len(train) < tuning.train_examples:
        raise InputError.at(
            "/finetune/train_examples",
            f"{tuning.train_examples} training rows were requested, but {len(rows)} usable rows minus {analysed} "
            f"analysed ones leave {len(rest)}",
        )
    if any(not row.label for row in rows):
        raise InputError.at("/dataset/label_column", "some rows have an empty label; fill it in or remove them")
    if not train:
        raise InputError.at(
            "/dataset/group_column",
            f"no row is left to train on: groups of the {len(rows)} usable rows are never split between analysis and "
            "training; use a column with smaller groups",
        )
    labels = {row.label for row in train}
    if len(labels) < 2:
        raise InputError.at(
            "/dataset/label_column",
            f"all training rows have the label {labels.pop()!r}; fine-tuning needs at least two",
        )
    spare = rest[len(train) :]
    if tuning.keep == "last":
        return Split(shuffled[:analysed], train, spare)
    if len(spare) >= MIN_HELD_OUT:
        held_out = _whole(spare, min(HELD_OUT, max(MIN_HELD_OUT, len(spare) // 4)))
        return Split(shuffled[:analysed], train, spare[held_out:], spare[:held_out])
    wanted = min(HELD_OUT, len(train) // 10)
    kept = _whole(train, len(train) - wanted)
    if wanted and kept == len(train):  # the last group is larger than what is held out
        kept = next((place for place in range(kept - 1, 0, -1) if _whole(train, place) == place), 0)
    if not kept:
        raise InputError.at(
            "/dataset/group_column",
            "all training rows belong to one group, so none can be held out to choose the best weights; use a "
            "column with smaller groups, or set finetune.keep to last",
        )
    return Split(shuffled[:analysed], train[:kept], spare, train[kept:])


def _shuffled(rows: list[Row], generator: torch.Generator) -> list[Row]:
    """The rows in random order, those of one group one after another."""
    units: dict[tuple[str | None, int], list[Row]] = {}
    for place, row in enumerate(rows):
        units.setdefault(_unit(row, place), []).append(row)
    every = list(units.values())
    return [row for index in torch.randperm(len(every), generator=generator).tolist() for row in every[index]]


def _whole(rows: list[Row], count: int) -> int:
    """So many of the first rows, or a few more, that no group is cut."""
    while 0 < count < len(rows) and rows[count].group is not None and rows[count].group == rows[count - 1].group:
        count += 1
    return min(count, len(rows))


def _require(count: int, least: int) -> None:
    if count < least:
        raise InputError.at("/dataset", f"the data set has {count} usable rows; at least {least} are needed")
