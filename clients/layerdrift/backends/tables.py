"""Data set files: rows of a text and a label out of CSV, TSV, JSON Lines or plain text, read as a stream.

Knows formats and their compression; where the bytes come from is `sources`' business. TSV is read as IANA defines
text/tab-separated-values: no quoting. Of Parquet only its first bytes are looked at here: the worker reads it.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import DatasetRef

TableFormat = Literal["csv", "tsv", "jsonl", "text", "parquet"]
SUFFIXES: dict[str, TableFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".parquet": "parquet",
}
Compression = Literal["gz", "bz2", "xz"]
_OPENERS: dict[Compression, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
_DECOMPRESSORS: dict[Compression, Callable[[], Any]] = {
    "gz": lambda: zlib.decompressobj(wbits=31),
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
_PARQUET = b"PAR1"
HEAD_BYTES = 1 << 20
"""Bytes of a file that are read to see its columns and first row."""

MAX_LINE_CHARACTERS = 8 << 20
"""A line of a data set that is longer is refused rather than held in memory."""

MAX_FIELD_CHARACTERS = 1 << 20
csv.field_size_limit(MAX_FIELD_CHARACTERS)


class Encoding(NamedTuple):
    """What a file's name says of its bytes."""

    format: TableFormat
    compression: Compression | None = None


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


def table_encoding(uri: str) -> Encoding:
    """The format that a URI's suffix names, and its compression; InputError where it names none."""
    name = uri.lower()
    compression = next((found for found in _OPENERS if name.endswith(f".{found}")), None)
    if compression is not None:
        name = name.removesuffix(f".{compression}")
    for suffix, format in SUFFIXES.items():
        if name.endswith(suffix):
            if format == "parquet" and compression is not None:
                raise InputError.at("/dataset/uri", f"{uri}: Parquet is compressed inside; give the .parquet file")
            return Encoding(format, compression)
    compressed = ", ".join(f".{found}" for found in _OPENERS)
    raise InputError.at(
        "/dataset/uri",
        f"{uri} must end in one of {', '.join(SUFFIXES)}, with or without {compressed} after it: the suffix tells the "
        "format",
    )


def check_head(head: bytes, whole: bool, encoding: Encoding, columns: Columns, where: str) -> None:
    """Raises InputError unless the first bytes of a file show the columns and one row.

    Args:
        head: the first bytes.
        whole: they are the whole file; else the last line is cut and not looked at.
    """
    format = encoding.format
    if format == "parquet":
        if not head.startswith(_PARQUET):
            raise InputError.at("/dataset/uri", f"{where} is no Parquet file")
        return
    if encoding.compression is not None:
        head, whole = _expanded(head, whole, encoding.compression, where)
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


def _expanded(head: bytes, whole: bool, compression: Compression, where: str) -> tuple[bytes, bool]:
    """The first bytes of what is compressed, and whether they are all of it."""
    decompressor = _DECOMPRESSORS[compression]()
    try:
        found: bytes = decompressor.decompress(head, HEAD_BYTES)
    except _DAMAGED as error:
        raise damaged(where) from error
    if whole and not decompressor.eof and len(found) < HEAD_BYTES:
        raise damaged(where)
    return found, bool(decompressor.eof)


def damaged(where: str) -> InputError:
    """A file that is not compressed as its name says."""
    return InputError.at("/dataset/uri", f"{where} is damaged, or not compressed as its name says")


def read_lines(path: Path, encoding: Encoding, max_bytes: int, where: str) -> Iterator[str]:
    """The lines of a file, expanded, with their ends.

    Raises:
        InputError: it is not UTF-8, is damaged, has a line of MAX_LINE_CHARACTERS, or expands to more than `max_bytes`.
    """
    opened = _OPENERS[encoding.compression](path) if encoding.compression else path.open("rb")
    size = 0
    with opened as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
        try:
            while line := stream.readline(MAX_LINE_CHARACTERS):
                if len(line) == MAX_LINE_CHARACTERS:
                    detail = f"{where} has a line of {MAX_LINE_CHARACTERS} characters or more; cut its texts shorter"
                    raise InputError.at("/dataset/uri", detail)
                size += len(line)
                if size > max_bytes:
                    raise InputError.at("/dataset/uri", f"{where} expands to more than {max_bytes} bytes")
                yield line
        except UnicodeDecodeError as error:
            raise not_utf8(where) from error
        except _DAMAGED as error:
            raise damaged(where) from error


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
    if format == "text":
        return _parse_text(lines, columns, where)
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


def _parse_text(lines: Iterable[str], columns: Columns, where: str) -> Iterator[Row]:
    if columns.labelled:
        raise InputError.at("/dataset/uri", f"{where} is plain text, which has no labels; a fine-tune needs a table")
    for line in lines:
        yield Row(line.rstrip("\r\n"), None)


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
