"""Rows of a data set split by use: analysed, training, held out, spare. Pure functions of rows, request and seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from backends.tables.chats import Turns
from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import MIN_EXAMPLES, AnalysisRequest, FineTune
from workers.results.warnings import ReportWarning
from workers.stages.common.inputs import Split

FINETUNE_ANALYSED_SHARE = 0.3
"""The analysis takes at most this share of the rows, so that the fine-tune has the rest."""

HELD_OUT, MIN_HELD_OUT = 500, 50
"""Rows that a fine-tune's best weights are chosen by: spare ones, or a tenth of the training rows where too few are.
Of language models, whose answers have many tokens each, at most a quarter of the training rows."""


def distinct(rows: list[Row]) -> tuple[list[Row], list[ReportWarning]]:
    """The first row of each text, or of each pair, blank ones left out; one that stood twice could be on both sides."""
    filled = [row for row in rows if row.text.strip() and (row.pair is None or row.pair.strip())]
    first = {identity(row): row for row in reversed(filled)}
    usable = _together([row for row in filled if first[identity(row)] is row])
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


def identity(row: Row) -> tuple[str, str | None, tuple[Turns, ...]]:
    """What two rows have in common that are the same text, the same pair, or the same chat with all its endings."""
    others = row.chat.others if row.chat is not None else ()
    return row.text.strip(), None if row.pair is None else row.pair.strip(), others


def _together(rows: list[Row]) -> list[Row]:
    """Chats that differ in their other endings alone as one group: they never stand on both sides."""
    counts = Counter(row.text for row in rows if row.chat is not None and row.group is None)
    return [row._replace(group=row.text) if counts[row.text] > 1 and row.group is None else row for row in rows]


def split_rows(rows: list[Row], request: AnalysisRequest) -> Split:
    """Splits rows at random by the seed: analysed first, then the fine-tune's, then the spare ones.

    Rows of one group stay together: a use gets a few rows more rather than a part of a group.

    Raises:
        InputError: there are too few rows, or a label is missing or alone.
    """
    shuffled = _shuffled(rows, torch.Generator().manual_seed(request.seed))
    wanted = _whole(shuffled, request.dataset.max_examples)
    tuning = request.finetune
    if tuning is None:
        _require(len(rows), MIN_EXAMPLES)
        return Split(shuffled[:wanted], [], shuffled[wanted:])
    _require(len(rows), 2 * MIN_EXAMPLES)
    count = min(wanted, _whole(shuffled, max(MIN_EXAMPLES, int(FINETUNE_ANALYSED_SHARE * len(rows)))))
    analysed, rest = shuffled[:count], shuffled[count:]
    train = rest if tuning.train_examples is None else rest[: _whole(rest, tuning.train_examples)]
    _require_training_rows(tuning, rows, len(rest), train)
    spare = rest[len(train) :]
    if tuning.keep == "last":
        return Split(analysed, train, spare)
    if len(spare) >= MIN_HELD_OUT:
        most = max(MIN_HELD_OUT, len(train) // 4) if tuning.language else HELD_OUT
        held_out = _whole(spare, min(most, HELD_OUT, max(MIN_HELD_OUT, len(spare) // 4)))
        return Split(analysed, train, spare[held_out:], spare[:held_out])
    kept = _kept_for_training(train)
    return Split(analysed, train[:kept], spare, train[kept:])


def _require_training_rows(tuning: FineTune, rows: list[Row], left: int, train: list[Row]) -> None:
    """Enough rows for the fine-tune, all with labels, of at least two kinds.

    Args:
        rows: all usable rows. left: how many the analysis leaves. train: those that the fine-tune would have.
    """
    if tuning.train_examples is not None and len(train) < tuning.train_examples:
        raise InputError.at(
            "/finetune/train_examples",
            f"{tuning.train_examples} training rows were requested, but {len(rows)} usable rows minus "
            f"{len(rows) - left} analysed ones leave {left}",
        )
    if not tuning.language and any(not row.label for row in rows):
        raise InputError.at("/dataset/label_column", "some rows have an empty label; fill it in or remove them")
    if not train:
        raise InputError.at(
            "/dataset/group_column",
            f"no row is left to train on: groups of the {len(rows)} usable rows are never split between analysis and "
            "training; use a column with smaller groups",
        )
    labels = {row.label for row in train}
    if not tuning.language and len(labels) < 2:
        raise InputError.at(
            "/dataset/label_column",
            f"all training rows have the label {labels.pop()!r}; fine-tuning needs at least two",
        )


def _kept_for_training(train: list[Row]) -> int:
    """How many of the training rows stay; the rest, about a tenth, is held out. No group is cut."""
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
    return kept


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


def units_of(rows: Sequence[Row]) -> tuple[int, ...] | None:
    """The number of each row's unit, from 0 on as they come; None where no row names a group."""
    if all(row.group is None for row in rows):
        return None
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(_unit(row, place), len(numbers)) for place, row in enumerate(rows))


def _unit(row: Row, place: int) -> tuple[str | None, int]:
    """What rows of one unit have in common; a row without a group has nothing in common with any."""
    return row.group, place if row.group is None else -1
