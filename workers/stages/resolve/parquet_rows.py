"""Parquet files as rows: which columns the schema has, of which types, and their values in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from backends.tables.chats import COLUMNS
from backends.tables.rows import (
    GROUP,
    LABEL,
    MAX_ROWS,
    MISSING,
    PAIR,
    ROW_BYTES,
    TEXT,
    Row,
    RowReader,
    lookup,
    names_of,
    no_column,
    not_a_label,
    not_a_text,
)
from layerdrift.contract.errors import InputError
from workers.stages.resolve import parquet_check

NESTED_BATCH_ROWS = 32
"""Of structs, whose strings are expanded before they can be counted."""

_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
    pa.types.is_null,
)
_LABELS = (*_TEXTS, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)


def parquet_rows(path: Path, reader: RowReader, max_bytes: int) -> Iterator[Row]:
    """The rows of a Parquet file; bytes are read as UTF-8, structs by names such as `data.text`.

    Raises:
        InputError: a column is missing or of a type that cannot be used, the file is damaged, or what is read of it
            expands to more than `max_bytes`.
    """
    where = reader.where
    try:
        with pq.ParquetFile(path) as file:
            wanted, unusable = _columns(file.schema_arrow, reader)
            flat = parquet_check.flat(file.schema_arrow, wanted)
            if file.metadata.num_rows > MAX_ROWS:
                raise _too_large(where, max_bytes)
        parquet_check.check(path, wanted, max_bytes, where)
        # a string that many rows share is expanded by nobody: it stays one, and rows have its number
        with pq.ParquetFile(path, read_dictionary=flat) as file:
            done = size = 0
            nested = len(flat) < len(wanted) or any(name not in file.schema_arrow.names for name in wanted)
            for batch in file.iter_batches(NESTED_BATCH_ROWS if nested else parquet_check.BATCH_ROWS, columns=wanted):
                size += _expanded(batch)
                if size > max_bytes:
                    raise _too_large(where, max_bytes)
                if unusable is not None:
                    reader.unusable[unusable] += batch.num_rows
                for number, record in enumerate(_records(batch, reader, done), start=done + 1):
                    yield reader.row(record, f"row {number}")
                done += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names of columns may be damaged too
        raise InputError.at("/dataset/uri", f"{where} cannot be read as Parquet: {error}") from error


def _expanded(batch: pa.RecordBatch) -> int:
    """Bytes of a batch's values, each counted as often as rows have it."""
    rows: int = batch.num_rows
    return rows * ROW_BYTES + sum(_value_bytes(column) for column in batch.columns)


def _value_bytes(column: pa.Array) -> int:
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary) if _is_one_of(column.type.value_type, _TEXTS) else None
        found = pc.sum(lengths.take(column.indices)).as_py() if lengths is not None else column.nbytes
        return int(found or 0)
    if pa.types.is_struct(column.type):
        return sum(_value_bytes(part) for part in column.flatten())
    size: int = column.nbytes
    return size


def _too_large(where: str, max_bytes: int) -> InputError:
    return InputError.at(
        "/dataset/uri",
        f"{where} expands to more than {max_bytes} bytes, or has more than {MAX_ROWS} rows; use a subset",
    )


def _records(batch: pa.RecordBatch, reader: RowReader, done: int) -> list[dict[str, Any]]:
    try:
        records: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        rows = f"one of the rows {done + 1} to {done + batch.num_rows}"
        raise InputError.at("/dataset/uri", f"{reader.where}, {rows}: a string is not UTF-8 ({error})") from error
    except ValueError as error:  # two fields of one name
        raise InputError.at("/dataset/uri", f"{reader.where} cannot be read: {error}") from error
    return records


def _columns(schema: pa.Schema, reader: RowReader) -> tuple[list[str], str | None]:
    """The columns to read, and the type of the labels' where they cannot be labels and so are not read."""
    columns, where, tree = reader.columns, reader.where, _tree(schema)
    reader.begin(names_of(tree))
    columns.require_once(schema.names, where)
    format = columns.chat_format(reader.names)
    wanted = [name for name in COLUMNS[format] if name in tree] if format is not None else []
    unusable = None
    for pointer, name in columns.wanted().items():
        type = lookup(tree, name)
        if format is not None and pointer in (TEXT, PAIR):
            continue
        if type is MISSING:
            if pointer in columns.required():
                raise no_column(pointer, name, reader.names, where)
        elif pointer == GROUP and not _is_one_of(type, _LABELS):
            detail = f"{where}: column {name!r} contains {_words(type)}; a group must be a string or a number"
            raise InputError.at(pointer, detail)
        elif pointer not in (LABEL, GROUP) and not _is_one_of(type, _TEXTS):
            raise not_a_text(pointer, name, _words(type), where)
        elif pointer == LABEL and not _is_one_of(type, _LABELS):
            if columns.labelled:
                raise not_a_label(name, _words(type), where)
            unusable, reader.label_seen = _words(type), True
        else:
            wanted.append(name)
    return wanted, unusable


def _tree(fields: Iterable[pa.Field]) -> dict[str, Any]:
    """The types of columns by their names; of a struct a tree again."""
    return {field.name: _tree(field.type) if pa.types.is_struct(field.type) else field.type for field in fields}


def _is_one_of(type: Any, kinds: tuple[Callable[[pa.DataType], bool], ...]) -> bool:
    if isinstance(type, dict):
        return False
    if isinstance(type, pa.BaseExtensionType):
        type = type.storage_type
    if pa.types.is_dictionary(type):
        type = type.value_type
    return any(kind(type) for kind in kinds)


def _words(type: Any) -> str:
    return "objects (type struct)" if isinstance(type, dict) else f"values of type {type}"
