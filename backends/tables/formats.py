"""The formats of data set files: CSV, TSV, JSON Lines, JSON arrays and plain text, as rows out of a stream of text.

Nothing here knows where the text came from or how it was encoded. Of CSV the delimiter is read off the header; TSV is
read as IANA defines text/tab-separated-values: no quoting.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from backends.tables.chats import format_of
from backends.tables.rows import (
    GROUP,
    LABEL,
    MISSING,
    PAIR,
    TEXT,
    Columns,
    Row,
    RowReader,
    kind_of,
    lookup,
    no_column,
)
from layerdrift.contract.errors import InputError

TableFormat = Literal["csv", "tsv", "jsonl", "json", "text", "parquet"]

MAX_LINE_CHARACTERS = 8 << 20
"""A line of a data set, or an item of a JSON array, that is longer is refused rather than held in memory."""

MAX_FIELD_CHARACTERS = 1 << 20
csv.field_size_limit(MAX_FIELD_CHARACTERS)

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def parse(pieces: Iterable[str], format: TableFormat, reader: RowReader, whole: bool = True) -> Iterator[Row]:
    """The rows of a table, blank texts included.

    Args:
        pieces: the file's lines with their ends; of format `json` pieces of any length.
        format: what is in it, as `format_inside` tells.
        whole: the pieces are all of it; else an item of a JSON array may be cut at their end.

    Raises:
        InputError: a column is missing, or a place cannot be read; the message names it.
    """
    if format == "text":
        return _parse_text(pieces, reader)
    if format == "jsonl":
        return _parse_objects(_json_lines(pieces, reader.where), "line", reader)
    if format == "json":
        return _parse_objects(_json_items(pieces, reader.where, whole), "item", reader)
    return _parse_delimited(pieces, format, reader, whole)


def format_inside(format: TableFormat, start: str, reader: RowReader) -> TableFormat:
    """What a file of this format really holds, from its first characters: an array in .jsonl, lines in .json.

    Raises:
        InputError: it is JSON, but neither an array nor lines of objects.
    """
    if format not in ("json", "jsonl"):
        return format
    content = start.lstrip()
    if content.startswith("["):
        return "json"
    if format == "jsonl" or _begins_lines(content, reader.columns.text):
        return "jsonl"
    raise _no_list(content, reader.where)


def _parse_delimited(lines: Iterable[str], format: TableFormat, reader: RowReader, whole: bool) -> Iterator[Row]:
    where = reader.where
    if format == "tsv":
        cells = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        lines, delimiter = _delimiter(iter(lines), reader.columns, where)
        cells = csv.reader(lines, delimiter=delimiter, strict=True)
    begun = 1
    try:
        header = next(cells, None)
        if header is None:
            raise InputError.at("/dataset/uri", f"{where} is empty")
        reader.columns.require(header, where)
        begun = cells.line_num + 1
        for values in cells:
            if not values:
                continue
            if len(values) != len(header):
                detail = f"{where}, line {cells.line_num}: {len(values)} cells, but the header has {len(header)}"
                raise InputError.at("/dataset/uri", detail)
            yield reader.row(dict(zip(header, values, strict=True)), f"line {cells.line_num}")
            begun = cells.line_num + 1
    except csv.Error as error:
        if not whole and "unexpected end" in str(error) and begun > 2:
            return  # the cell goes on beyond what is known of the file
        lines_of = f"line {begun}" if begun >= cells.line_num else f"lines {begun} to {cells.line_num}"
        detail = f'{where}, {lines_of}: {error}. Quote cells that contain quotes, and double each quote: ""'
        raise InputError.at("/dataset/uri", detail) from error


def header_of(lines: Iterable[str], format: TableFormat) -> list[str]:
    """The columns that the header of a delimited file names, by the delimiter that splits it most."""
    if format == "tsv":
        return next(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), [])
    kept, headers = list(lines), list[list[str]]()
    for delimiter in _DELIMITERS:
        try:
            headers.append(next(csv.reader(kept, delimiter=delimiter), []))
        except csv.Error:
            continue
    return max(headers, key=len, default=[])


def _delimiter(lines: Iterator[str], columns: Columns, where: str) -> tuple[Iterator[str], str]:
    """All the lines again, and the delimiter under which the header has the text's column; commas come first."""
    seen: list[str] = []
    best: list[str] = []
    read_as, problem = "", ""
    for delimiter, words in _DELIMITERS.items():
        try:
            header = next(csv.reader(_again(seen, lines), delimiter=delimiter), [])
        except csv.Error as error:
            problem = problem or f"; {error}"
            continue
        if columns.text in header or (columns.chat_format(header) is not None and len(header) > 1):
            return _chained(seen, lines), delimiter
        if len(header) > len(best):
            best, read_as = header, "" if delimiter == "," else f", split at {words},"
    if not seen:
        raise InputError.at("/dataset/uri", f"{where} is empty")
    if not best and problem:
        raise InputError.at("/dataset/uri", f"{where}, line 1{problem}")
    raise no_column(TEXT, columns.text, best, where + read_as)


def _again(seen: list[str], lines: Iterator[str]) -> Iterator[str]:
    """The lines that were seen, then the others, which are seen from then on."""
    yield from seen
    for line in lines:
        seen.append(line)
        yield line


def _chained(seen: list[str], lines: Iterator[str]) -> Iterator[str]:
    yield from seen
    seen.clear()
    yield from lines


def _parse_text(lines: Iterable[str], reader: RowReader) -> Iterator[Row]:
    columns, where = reader.columns, reader.where
    if columns.labelled:
        raise InputError.at("/dataset/uri", f"{where} is plain text and has no labels; a fine-tune needs a table")
    for pointer, name, default in (
        (TEXT, columns.text, "text"),
        (PAIR, columns.pair, None),
        (LABEL, columns.label, None),
        (GROUP, columns.group, None),
    ):
        if name != default:
            detail = f"{where} is plain text and has no columns; leave this out, or give a table with {name!r}"
            raise InputError.at(pointer, detail)
    for line in lines:
        yield Row(line.rstrip("\r\n"), None)


def _parse_objects(values: Iterable[tuple[int, Any]], unit: str, reader: RowReader) -> Iterator[Row]:
    for number, value in values:
        place = f"{unit} {number}"
        if not isinstance(value, dict):
            detail = f"{reader.where}, {place}: each row must be a JSON object, not {kind_of(value)}"
            raise InputError.at("/dataset/uri", detail)
        yield reader.row(value, place)
    reader.finish()


def _json_lines(lines: Iterable[str], where: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError.at("/dataset/uri", f"{where}, line {number}: not JSON ({error})") from error


class _Window:
    """A stretch of a stream of text, with a place in it that is read next. error: why the last value is MISSING."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.error = ""
        self._pieces = iter(pieces)
        self._text, self._at = "", 0

    def more(self) -> bool:
        """Reads on, as much again as is left, so that reading a long item over and over takes linear time."""
        left = self._text[self._at :]
        wanted, parts, size = max(1, len(left)), [left], 0
        while size < wanted and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            size += len(piece)
        self._text, self._at = "".join(parts), 0
        return size > 0

    def next_sign(self) -> str:
        """The next character that is not white space, which stays; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self.more():
                return ""

    def skip(self) -> None:
        """Goes past one character."""
        self._at += 1

    def value(self, where: str) -> Any:
        """The JSON value that begins here; MISSING where the stream ends inside it."""
        decoder = json.JSONDecoder()
        while True:
            try:
                value, self._at = decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_LINE_CHARACTERS:
                    detail = f"is not JSON, or has {MAX_LINE_CHARACTERS} characters or more"
                    raise InputError.at("/dataset/uri", f"{where} {detail}; {_reason(error)}") from error
                if not self.more():
                    self.error = _reason(error)
                    return MISSING
            else:
                return value


def _reason(error: Exception) -> str:
    """What json says, without positions, which are those of the window."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _json_items(pieces: Iterable[str], where: str, whole: bool) -> Iterator[tuple[int, Any]]:
    """The items of a JSON array, which may be longer than memory."""
    window = _Window(pieces)
    window.next_sign()
    window.skip()
    number, sign = 0, window.next_sign()
    while sign != "]":
        number += 1
        value = window.value(f"{where}, item {number}")
        sign = window.next_sign()
        if value is MISSING or not sign:
            if not whole:
                return
            detail = f"{where}, item {number}: not JSON ({window.error or 'the list is not closed'})"
            raise InputError.at("/dataset/uri", detail)
        yield number, value
        if sign not in ",]":
            raise InputError.at("/dataset/uri", f"{where}: missing comma after item {number} of the list")
        if sign == ",":
            window.skip()
            sign = window.next_sign()
    window.skip()
    if window.next_sign():
        raise InputError.at("/dataset/uri", f"{where} has content after the list; give a single list, or JSON Lines")


def _begins_lines(content: str, text_column: str) -> bool:
    """Whether a file begins with a JSON object on a line of its own, and another follows or it is a row itself."""
    first, _, rest = content.partition("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    known = lookup(value, text_column) is not MISSING or format_of(list(value)) is not None
    return rest.lstrip().startswith("{") or known


def _no_list(content: str, where: str) -> InputError:
    if not content:
        return InputError.at("/dataset/uri", f"{where} is empty")
    if not content.startswith("{"):
        return InputError.at("/dataset/uri", f"{where} is not a list of objects: a .json file must begin with [")
    keys = _keys(content)
    lists = [name for name, kind in keys.items() if kind == "a list"]
    shown = ", ".join([f"{name} ({kind})" for name, kind in keys.items()][:20]) or "none"
    advice = f"Give only the list under {lists[0]!r}" if len(lists) == 1 else "Give a list of objects"
    return InputError.at(
        "/dataset/uri",
        f"{where} is a single JSON object, not a list of rows; its keys: {shown}. {advice}, or JSON Lines",
    )


def _keys(content: str) -> dict[str, str]:
    """The keys of a JSON object that may be cut short, with the kinds of their values."""
    window, keys = _Window([content]), dict[str, str]()
    window.more()
    try:
        while window.next_sign() in ("{", ","):
            window.skip()
            if window.next_sign() != '"':
                break
            key = window.value("")
            if key is MISSING or window.next_sign() != ":":
                break
            window.skip()
            cut = {"[": "a list", "{": "an object"}.get(window.next_sign(), "truncated")
            value = window.value("")
            keys[key] = cut if value is MISSING else kind_of(value)
    except InputError:
        return keys
    return keys
