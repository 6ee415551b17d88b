"""Data set files: which format a name tells, a check of the first bytes, and the rows of the whole as a stream.

Where the bytes come from is `sources`' business, the formats are `formats`', the columns `rows`'. Of
Parquet only its first bytes are looked at here: the worker reads it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from backends.tables.compression import (
    COMPRESSIONS,
    DAMAGED,
    Compression,
    damaged,
    expanded_head,
    open_expanded,
)
from backends.tables.formats import MAX_LINE_CHARACTERS, TableFormat, format_inside, header_of, parse
from backends.tables.rows import Columns, Row, RowReader, names_of
from backends.tables.text_encoding import MARK_BYTES, codec_of, decode_head, undecodable
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import TextsRef

__all__ = [
    "HEAD_BYTES",
    "SUFFIXES",
    "Columns",
    "Encoding",
    "Row",
    "RowReader",
    "check_head",
    "column_names",
    "head_rows",
    "inline_rows",
    "inline_sha256",
    "read_rows",
    "table_encoding",
]

SUFFIXES: dict[str, TableFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".parquet": "parquet",
}
_PARQUET = b"PAR1"
HEAD_BYTES = 1 << 20
"""Bytes of a file that are read to see its columns and first row."""

_CHUNK_CHARACTERS = 1 << 16


class Encoding(NamedTuple):
    """What a file's name says of its bytes."""

    format: TableFormat
    compression: Compression | None = None


def table_encoding(uri: str) -> Encoding:
    """The format that a URI's suffix names, and its compression; InputError where it names none."""
    name = uri.lower()
    compression = next((found for found in COMPRESSIONS if name.endswith(f".{found}")), None)
    if compression is not None:
        name = name.removesuffix(f".{compression}")
    for suffix, format in SUFFIXES.items():
        if name.endswith(suffix):
            if format == "parquet" and compression is not None:
                raise InputError.at("/dataset/uri", f"{uri}: Parquet has its own compression; give the .parquet file")
            return Encoding(format, compression)
    compressed = ", ".join(f".{found}" for found in COMPRESSIONS)
    raise InputError.at(
        "/dataset/uri",
        f"{uri} must end in one of {', '.join(SUFFIXES)}, optionally followed by {compressed}: the suffix determines "
        "the format",
    )


class _NameReader(RowReader):
    """Reads the names of a table's columns, and nothing of its rows."""

    def row(self, record: Mapping[str, Any], place: str) -> Row:
        if not self.names:
            self.names = names_of(record)
        return Row("", None)


def column_names(head: bytes, whole: bool, encoding: Encoding, where: str) -> list[str]:
    """The columns of a file that the request may name; empty where its first bytes do not tell them."""
    if encoding.format in ("parquet", "text"):
        return []
    reader = _NameReader(Columns("", None, labelled=False), where)
    try:
        if encoding.format in ("csv", "tsv"):
            return header_of(_head_lines(head, whole, encoding, where), encoding.format)
        next(_head_rows(head, whole, encoding, reader), None)
    except InputError:
        return []
    return reader.names


def _head_lines(head: bytes, whole: bool, encoding: Encoding, where: str) -> list[str]:
    if encoding.compression is not None:
        head, whole = expanded_head(head, whole, encoding.compression, HEAD_BYTES, where)
    return _lines(decode_head(head, whole, where), whole, where)


def _head_rows(head: bytes, whole: bool, encoding: Encoding, reader: RowReader) -> Iterator[Row]:
    """The rows that the first bytes of a file hold whole."""
    if encoding.compression is not None:
        head, whole = expanded_head(head, whole, encoding.compression, HEAD_BYTES, reader.where)
    text = decode_head(head, whole, reader.where)
    format = format_inside(encoding.format, text, reader)
    pieces = [text] if format == "json" else _lines(text, whole, reader.where)
    return parse(pieces, format, reader, whole)


def head_rows(head: bytes, whole: bool, encoding: Encoding, columns: Columns, where: str) -> list[Row]:
    """The rows that the first bytes of a file hold whole; none of a Parquet file, which the worker reads."""
    if encoding.format == "parquet":
        return []
    return list(_head_rows(head, whole, encoding, RowReader(columns, where)))


def check_head(head: bytes, whole: bool, encoding: Encoding, columns: Columns, where: str) -> None:
    """Raises InputError unless the first bytes of a file show the columns and one row.

    Args:
        head: the first bytes.
        whole: they are the whole file; else the last line is cut and not looked at.
    """
    if encoding.format == "parquet":
        if not head.startswith(_PARQUET):
            raise InputError.at("/dataset/uri", f"{where} is not a Parquet file")
        return
    if encoding.compression is not None:
        head, whole = expanded_head(head, whole, encoding.compression, HEAD_BYTES, where)
    text, reader = decode_head(head, whole, where), RowReader(columns, where)
    format = format_inside(encoding.format, text, reader)
    pieces = [text] if format == "json" else _lines(text, whole, where)
    rows = parse(pieces, format, reader, whole)
    if next(rows, None) is None:
        shown = "" if whole else f" that end within its first {HEAD_BYTES} bytes"
        raise InputError.at("/dataset/uri", f"{where} has no rows{shown}")
    if format in ("json", "jsonl") and columns.label is not None:
        while not reader.label_seen and next(rows, None) is not None:
            pass


def _lines(text: str, whole: bool, where: str) -> list[str]:
    lines = list(io.StringIO(text, newline=""))  # ends lines where a file does; str.splitlines ends more
    if whole:
        return lines
    if len(lines) < 2:
        raise InputError.at("/dataset/uri", f"{where} has no line break in its first {HEAD_BYTES} bytes")
    return lines[:-1]


def read_rows(path: Path, encoding: Encoding, max_bytes: int, reader: RowReader) -> Iterator[Row]:
    """The rows of a file, which is expanded and decoded on the way.

    Raises:
        InputError: it is not UTF-8 and has no byte order mark, is damaged, expands to more than `max_bytes`, has a line
            of MAX_LINE_CHARACTERS, or holds what `reader` or its format refuses.
    """
    where = reader.where
    with open_expanded(path, encoding.compression) as raw:
        try:
            yield from _decoded_rows(raw, encoding.format, max_bytes, reader)
        except UnicodeDecodeError as error:
            raise _undecodable(path, encoding.compression, where) from error
        except DAMAGED as error:
            raise damaged(where) from error


def _decoded_rows(raw: IO[bytes], format: TableFormat, max_bytes: int, reader: RowReader) -> Iterator[Row]:
    codec = codec_of(raw.read(MARK_BYTES), reader.where)
    raw.seek(0)
    with io.TextIOWrapper(raw, encoding=codec, newline="") as stream:
        format = _format_inside(stream, format, reader)
        yield from parse(_pieces(stream, format == "json", max_bytes, reader.where), format, reader)


def _undecodable(path: Path, compression: Compression | None, where: str) -> InputError:
    """The error of a file that is not of its encoding, which may be because it is damaged."""
    with open_expanded(path, compression) as raw:
        try:
            return undecodable(raw, where)
        except DAMAGED:
            return damaged(where)


def _format_inside(stream: io.TextIOWrapper, format: TableFormat, reader: RowReader) -> TableFormat:
    if format not in ("json", "jsonl"):
        return format
    found = format_inside(format, stream.read(HEAD_BYTES), reader)
    stream.seek(0)
    return found


def _pieces(stream: io.TextIOWrapper, chunked: bool, max_bytes: int, where: str) -> Iterator[str]:
    """The text of a file, by lines with their ends or by chunks."""
    size = 0
    while piece := stream.read(_CHUNK_CHARACTERS) if chunked else stream.readline(MAX_LINE_CHARACTERS):
        if len(piece) == MAX_LINE_CHARACTERS:
            detail = f"{where} has a line of {MAX_LINE_CHARACTERS} characters or more; shorten its texts"
            raise InputError.at("/dataset/uri", detail)
        size += len(piece)
        if size > max_bytes:
            raise InputError.at("/dataset/uri", f"{where} expands to more than {max_bytes} bytes")
        yield piece


def inline_rows(dataset: TextsRef) -> Iterator[Row]:
    """The rows of a data set that stands in the request."""
    inline = dataset.inline
    if inline is None:
        raise ValueError("the data set is not inline")
    for index, text in enumerate(inline.texts):
        label = None if inline.labels is None else str(inline.labels[index])
        pair = None if inline.pairs is None else inline.pairs[index]
        yield Row(text, label, pair, None if inline.groups is None else str(inline.groups[index]))


def inline_sha256(dataset: TextsRef) -> str:
    """A hash of the inline texts, pairs and labels."""
    if dataset.inline is None:
        raise ValueError("the data set is not inline")
    return hashlib.sha256(dataset.inline.model_dump_json().encode()).hexdigest()
