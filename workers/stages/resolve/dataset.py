"""The rows of a request's data set, read whole, and what a reader of the report must know of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from backends.sources.pinning import PinnedDataset, Sources
from backends.tables.reading import inline_rows, read_rows, table_encoding
from backends.tables.rows import NO_CHAT, Columns, Row, RowReader, whole_number_labels, within_limit
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import TextsRef
from workers.results.warnings import ReportWarning
from workers.stages.resolve.parquet_rows import parquet_rows

_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_A", "sentence_B"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("query", "passage"),
    ("query", "document"),
    ("text_a", "text_b"),
    ("anchor", "positive"),
)
"""Columns that hold the two texts of a pair, in the order that models read them."""


class DatasetRows(NamedTuple):
    """All rows of a data set, blank ones and repetitions included, and the sha256 of the file or of the inline data."""

    rows: list[Row]
    sha256: str
    warnings: list[ReportWarning]


def read_dataset(texts: TextsRef, pinned: PinnedDataset, labelled: bool, sources: Sources, path: Path) -> DatasetRows:
    """Fetches a pinned data set to `path` and reads it.

    Args:
        labelled: every row must have a label.

    Raises:
        InputError: it is no longer what was pinned, or cannot be read.
    """
    if pinned.sha256 is not None:
        return DatasetRows(list(inline_rows(texts)), pinned.sha256, [])
    if pinned.file is None:
        raise ValueError("the data set is neither inline nor a file")
    sha256 = sources.fetch_dataset(pinned, path)
    encoding = table_encoding(pinned.file.name)
    reader = RowReader(Columns.of(texts, labelled), pinned.source)
    if encoding.format == "parquet":
        found = parquet_rows(path, reader, sources.max_dataset_bytes)
    else:
        found = read_rows(path, encoding, sources.max_dataset_bytes, reader)
    read = list(within_limit(found, reader.where))
    rows = [row for row in read if row.chat != NO_CHAT]
    if encoding.format in ("csv", "tsv"):
        rows = whole_number_labels(rows)
    return DatasetRows(rows, sha256, [*_about_chats(reader, len(read)), *reading_warnings(reader, rows)])


def reading_warnings(reader: RowReader, rows: list[Row]) -> list[ReportWarning]:
    """What there is to say of the rows that a reader made: all of them, as they were read."""
    return [*_about_labels(reader, rows), *_about_pairs(reader)]


def _about_chats(reader: RowReader, rows: int) -> list[ReportWarning]:
    """A warning on rows that are no usable chat; InputError where no row is one."""
    count = sum(reader.no_chats.values())
    if not count:
        return []
    reasons = "; ".join(f"{reason} ({number})" for reason, number in reader.no_chats.most_common(5))
    message = (
        f"{count} of {rows} rows are no usable chat, the first at {reader.first_no_chat} of {reader.where}: {reasons}"
    )
    if count == rows:
        raise InputError.at("/dataset/uri", message)
    return [ReportWarning(code="unusable_chats", message=f"{message}. They were skipped")]


def _about_labels(reader: RowReader, rows: list[Row]) -> list[ReportWarning]:
    name, total = reader.columns.label_name, len(rows)
    unusable = sum(reader.unusable.values())
    unlabelled = sum(row.label is None for row in rows) - unusable
    warnings = []
    if unlabelled and (reader.columns.label is not None or unlabelled + unusable < total):
        message = (
            f"{unlabelled} of {total} rows have no label in column {name!r}; they are excluded wherever labels are "
            "needed"
        )
        warnings.append(ReportWarning(code="unlabelled_rows", message=message))
    if unusable:
        kinds = ", ".join(f"{kind} ({count} rows)" for kind, count in sorted(reader.unusable.items()))
        message = (
            f"{unusable} of {total} rows have an unusable label in column {name!r}: {kinds}. They count as "
            "unlabelled; a label must be a string, a number or a boolean"
        )
        warnings.append(ReportWarning(code="unusable_labels", message=message))
    return warnings


def _about_pairs(reader: RowReader) -> list[ReportWarning]:
    """A warning where the text is one of a well-known pair whose other text is there and not read."""
    if reader.columns.pair is not None:
        return []
    prefix, dot, name = reader.columns.text.rpartition(".")
    for pair in _PAIRS:
        first, second = (f"{prefix}{dot}{one}" for one in pair)
        partner = second if name == pair[0] else first
        if name in pair and partner in reader.names:
            message = (
                f"only column {reader.columns.text!r} is read, but the data set also has {partner!r}. If the models "
                f"read pairs, set text_column to {first!r} and text_pair_column to {second!r}"
            )
            return [ReportWarning(code="single_texts_of_pairs", message=message)]
    return []
