"""Data set files: rows of a text and a label out of CSV, TSV or JSON Lines, read as a stream.

Knows formats; where the bytes come from is `sources`' business. TSV is read as IANA defines text/tab-separated-values:
no quoting.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import DatasetRef

TableFormat = Literal["csv", "tsv", "jsonl"]
SUFFIXES: dict[str, TableFormat] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
HEAD_BYTES = 1 << 20
"""Bytes of a file that are read to see its columns and first row."""

MAX_FIELD_CHARACTERS = 1 << 20
csv.field_size_limit(MAX_FIELD_CHARACTERS)


class Row(NamedTuple):
    """One usable row; the label is None where there is none."""

    text: str
    label: str | None


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read. Without `labelled`, labels are taken where there are some."""

    text: str
    label: str
    labelled: bool

    @classmethod
    def of(cls, dataset: DatasetRef, labelled: bool) -> Columns:
        return cls(dataset.text_column, dataset.label_column, labelled)

    def require(self, present: Iterable[str], where: str) -> None:
        """Raises InputError unless the columns are among those present."""
        names = list(present)
        shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        if self.text not in names:
            raise InputError.at("/dataset/text_column", f"{where} has no column {self.text!r}; it has: {shown}")
        if self.labelled and self.label not in names:
            raise InputError.at("/dataset/label_column", f"{where} has no column {self.label!r}; it has: {shown}")


def table_format(uri: str) -> TableFormat:
    """The format that a URI's suffix names; InputError where it names none."""
    for suffix, name in SUFFIXES.items():
        if uri.lower().endswith(suffix):
            return name
    raise InputError.at("/dataset/uri", f"{uri} must end in one of {', '.join(SUFFIXES)}: the suffix tells the format")


def check_head(head: bytes, whole: bool, format: TableFormat, columns: Columns, where: str) -> None:
    """Raises InputError unless the first bytes of a file show the columns and one row.

    Args:
        head: the first bytes.
        whole: they are the whole file; else the last line is cut and not looked at.
    """
    text = head.decode("utf-8-sig", errors="strict" if whole else "ignore") if _is_utf8(head, whole) else None
    if text is None:
        raise not_utf8(where)
    lines = list(io.StringIO(text, newline=""))  # ends lines where a file does; str.splitlines ends more
    if not whole:
        lines = lines[:-1]
    if not whole and not lines:
        raise InputError.at("/dataset/uri", f"{where} has no end of line within its first {HEAD_BYTES} bytes")
    row = next(parse(lines, format, columns, where), None)
    if row is None:
        shown = "" if whole else f" that ends within its first {HEAD_BYTES} bytes"
        raise InputError.at("/dataset/uri", f"{where} holds no rows{shown}")


def not_utf8(where: str) -> InputError:
    """A file of another encoding."""
    return InputError.at("/dataset/uri", f"{where} is not UTF-8; convert it, e.g. with iconv -t UTF-8")


def _is_utf8(head: bytes, whole: bool) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return not whole and error.start >= len(head) - 4
    return True


def parse(lines: Iterable[str], format: TableFormat, columns: Columns, where: str) -> Iterator[Row]:
    """The rows of a table, blank texts included.

    Raises:
        InputError: a column is missing, or a line cannot be read; the message names the line.
    """
    if format == "jsonl":
        return _parse_json_lines(lines, columns, where)
    return _parse_delimited(lines, format, columns, where)


def _parse_delimited(lines: Iterable[str], format: TableFormat, columns: Columns, where: str) -> Iterator[Row]:
    tab_separated = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    reader = tab_separated if format == "tsv" else csv.reader(lines)
    try:
        header = next(reader, None)
        if header is None:
            raise InputError.at("/dataset/uri", f"{where} is empty")
        columns.require(header, where)
        if header.count(columns.text) > 1:
            raise InputError.at("/dataset/text_column", f"{where} has {columns.text!r} more than once in its header")
        text_at = header.index(columns.text)
        label_at = header.index(columns.label) if columns.label in header else None
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError.at(
                    "/dataset/uri",
                    f"{where}, line {reader.line_num}: {len(cells)} cells, but the header names {len(header)}",
                )
            label = None if label_at is None else cells[label_at]
            yield Row(cells[text_at], label if columns.labelled else label or None)
    except csv.Error as error:
        raise InputError.at("/dataset/uri", f"{where}, line {reader.line_num}: {error}") from error


def _parse_json_lines(lines: Iterable[str], columns: Columns, where: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError.at("/dataset/uri", f"{where}, line {number}: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise InputError.at("/dataset/uri", f"{where}, line {number}: not a JSON object")
        columns.require(value, f"{where}, line {number},")
        text = value[columns.text]
        if not isinstance(text, str):
            raise InputError.at("/dataset/text_column", f"{where}, line {number}: {columns.text!r} is not a string")
        if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
            raise InputError.at("/dataset/text_column", f"{where}, line {number}: half a surrogate pair; cut it whole")
        label = value.get(columns.label)
        usable = isinstance(label, str | int)
        if columns.labelled and not usable:
            raise InputError.at(
                "/dataset/label_column",
                f"{where}, line {number}: {columns.label!r} must be a string, an integer or a truth value",
            )
        yield Row(text, str(label) if usable and (columns.labelled or label != "") else None)


def inline_rows(dataset: DatasetRef) -> Iterator[Row]:
    """The rows of a data set that stands in the request."""
    if dataset.inline is None:
        raise ValueError("the data set is not inline")
    labels = dataset.inline.labels
    for index, text in enumerate(dataset.inline.texts):
        yield Row(text, None if labels is None else str(labels[index]))


def inline_sha256(dataset: DatasetRef) -> str:
    """A hash of the inline texts and labels."""
    if dataset.inline is None:
        raise ValueError("the data set is not inline")
    return hashlib.sha256(dataset.inline.model_dump_json().encode()).hexdigest()
