"""Data sets as a worker reads them: Parquet by its schema, warnings about labels and pairs, a request's file."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backends.settings import Settings
from backends.sources.pinning import PinnedDataset, Sources
from backends.storage.blobs import BlobStore
from backends.tables.reading import Columns, Row, RowReader
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from workers.stages.resolve.dataset import DatasetRows, read_dataset, reading_warnings
from workers.stages.resolve.parquet_check import BATCH_ROWS
from workers.stages.resolve.parquet_rows import parquet_rows
from workers.stages.resolve.splitting import units_of

MAYBE = Columns("text", None, labelled=False)
BOTH = Columns("text", "label", labelled=True)
TURNS = [{"role": "user", "content": "hi"}]
STAMP = datetime(2026, 1, 1, tzinfo=UTC)


def read(path: Path, table: dict[str, Any] | pa.Table, columns: Columns = MAYBE) -> tuple[list[Row], RowReader]:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path)
    reader = RowReader(columns, "x.parquet")
    return list(parquet_rows(path, reader, 2**30)), reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.parquet"


def test_parquet_is_read_by_its_columns_whatever_the_others_hold(path: Path) -> None:
    table = {"text": ["a", None], "label": [1, 2], "other": [[1], [2]], "when": [STAMP, STAMP], "raw": [b"\xff", b""]}
    assert read(path, table, BOTH)[0] == [Row("a", "1"), Row("", "2")]


@pytest.mark.parametrize(
    "type", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_texts_may_be_of_every_type_of_strings_and_bytes(path: Path, type: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["naïve", None, "naïve"]).cast(type), "pair": pa.array(["x", "y", None])})
    columns = Columns("text", None, labelled=False, pair="pair")
    assert read(path, table, columns)[0] == [Row("naïve", None, "x"), Row("", None, "y"), Row("naïve", None, "")]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (pa.array([0.0, 1.0, 0.5, float("nan"), None]), ["0", "1", "0.5", None, None]),
        (pa.array([1, 0, None], pa.int8()), ["1", "0", None]),
        (pa.array([True, False]), ["True", "False"]),
        (pa.array([1.0, 2.5], pa.float32()), ["1", "2.5"]),
        (pa.array([Decimal("1.00"), Decimal("2.50")]), ["1", "2.50"]),
        (pa.array(["x", "", None]).dictionary_encode(), ["x", None, None]),
        (pa.array([b"x", b"\xff"]), ["x", None]),
    ],
)
def test_parquet_labels_are_whole_numbers_and_strings(path: Path, labels: pa.Array, found: list[str | None]) -> None:
    rows, _ = read(path, {"text": ["a"] * len(labels), "label": labels})
    assert [row.label for row in rows] == found


def test_parquet_structs_are_read_by_names_with_a_dot(path: Path) -> None:
    table = {
        "data": [{"text": "a", "deep": {"label": 1.0}}, {"text": "b", "deep": None}, None],
        "a.b": ["x", "y", "z"],
    }
    columns = Columns("data.text", "data.deep.label", labelled=False, pair="a.b")
    assert read(path, table, columns)[0] == [Row("a", "1", "x"), Row("b", None, "y"), Row("", None, "z")]
    with pytest.raises(InputError, match=r"no column 'text'; it has: data, data\.text, data\.deep, a\.b"):
        read(path, table)


@pytest.mark.parametrize(
    ("table", "columns", "pointer", "message"),
    [
        ({"body": ["a"]}, MAYBE, "text", "has no column 'text'; it has: body"),
        ({"text": ["a"]}, Columns("text", "stars", labelled=False), "label", "no column 'stars'; it has: text"),
        ({"text": ["a"]}, BOTH, "label", "has no column 'label'"),
        ({"text": ["a"]}, Columns("text", None, False, "b"), "text_pair", "has no column 'b'"),
        ({"text": [1]}, MAYBE, "text", "column 'text' contains values of type int64; texts must be strings"),
        ({"text": [STAMP]}, MAYBE, "text", "column 'text' contains values of type timestamp"),
        (
            {"text": ["a"], "b": [2]},
            Columns("text", None, False, "b"),
            "text_pair",
            "'b' contains values of type int64",
        ),
        ({"messages": [TURNS]}, Columns("messages", None, False), "text", "chat data must be rendered to text first"),
        ({"text": [{"a": 1}]}, MAYBE, "text", r"column 'text' contains objects \(type struct\)"),
        ({"text": ["a"], "label": [STAMP]}, BOTH, "label", "column 'label' contains values of type timestamp"),
        ({"text": ["a"], "label": [None]}, BOTH, "label", "row 1: column 'label' contains null"),
        ({"text": ["a"] * BATCH_ROWS + [b"b", b"\xff"]}, MAYBE, "text", f"row {BATCH_ROWS + 2}: the bytes in column"),
    ],
)
def test_a_parquet_column_that_cannot_be_used_is_named(
    path: Path, table: dict[str, Any], columns: Columns, pointer: str, message: str
) -> None:
    if b"\xff" in table.get("text", []):
        table = {"text": pa.array([text if isinstance(text, bytes) else text.encode() for text in table["text"]])}
    with pytest.raises(InputError, match=message) as error:
        read(path, table, columns)
    assert error.value.errors[0].pointer == f"/dataset/{pointer}_column"


def test_a_parquet_string_that_is_not_utf_8_is_refused(path: Path) -> None:
    broken = pa.array([b"\xff"]).view(pa.string())
    with pytest.raises(InputError, match="rows 1 to 1: a string is not UTF-8"):
        read(path, {"text": broken})


def test_a_parquet_column_that_is_there_twice_is_refused(path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(InputError, match="has more than one column"):
        read(path, table)


def test_a_damaged_parquet_file_is_refused(path: Path) -> None:
    read(path, {"text": ["a"]})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        list(parquet_rows(path, RowReader(MAYBE, "x.parquet"), 2**30))


def test_a_parquet_column_with_a_damaged_name_is_refused(path: Path) -> None:
    read(path, {"text": ["a"], "marker": ["b"]})
    path.write_bytes(path.read_bytes().replace(b"marker", b"mark\xffr"))
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        list(parquet_rows(path, RowReader(MAYBE, "x.parquet"), 2**30))


@pytest.mark.parametrize(
    ("labels", "kind"), [([STAMP, None], "values of type timestamp"), ([[1], [2]], "values of type list")]
)
def test_parquet_labels_of_another_type_are_a_warning_that_names_it(path: Path, labels: list[Any], kind: str) -> None:
    rows, reader = read(path, {"text": ["a", "b"], "label": labels}, Columns("text", "label", labelled=False))
    assert rows == [Row("a", None), Row("b", None)]
    (warning,) = reading_warnings(reader, rows)
    assert warning.code == "unusable_labels"
    assert "2 of 2 rows have an unusable label in column 'label'" in warning.message
    assert kind in warning.message


def told(records: list[dict[str, Any]], columns: Columns = MAYBE) -> list[tuple[str, str]]:
    reader = RowReader(columns, "the file")
    rows = [reader.row(record, f"line {number}") for number, record in enumerate(records, start=1)]
    return [(warning.code, warning.message) for warning in reading_warnings(reader, rows)]


def test_rows_without_a_label_are_counted_where_others_have_one() -> None:
    records: list[dict[str, Any]] = [
        {"text": "a", "label": 1},
        {"text": "b"},
        {"text": "c", "label": None},
        {"text": "d", "label": [1]},
    ]
    codes = dict(told(records))
    assert codes["unlabelled_rows"].startswith("2 of 4 rows have no label in column 'label'")
    assert codes["unusable_labels"].startswith("1 of 4 rows have an unusable label in column 'label'")
    assert "a list (1 rows)" in codes["unusable_labels"]
    assert told([{"text": "a", "label": None}, {"text": "b"}]) == []
    assert [code for code, _ in told(records[1:3], Columns("text", "label", labelled=False))] == ["unlabelled_rows"]


@pytest.mark.parametrize(
    ("names", "text", "first", "second"),
    [
        (["premise", "hypothesis"], "premise", "premise", "hypothesis"),
        (["premise", "hypothesis"], "hypothesis", "premise", "hypothesis"),
        (["query", "document"], "query", "query", "document"),
        (["question", "question1", "question2", "sentence"], "question", "question", "sentence"),
        (["sentence_A", "sentence_B"], "sentence_A", "sentence_A", "sentence_B"),
    ],
)
def test_one_text_of_a_well_known_pair_is_a_warning(names: list[str], text: str, first: str, second: str) -> None:
    record = dict.fromkeys(names, "a")
    ((code, message),) = told([record], Columns(text, None, labelled=False))
    assert code == "single_texts_of_pairs"
    assert f"set text_column to {first!r} and text_pair_column to {second!r}" in message
    ((_, nested),) = told([{"data": record}], Columns(f"data.{text}", None, labelled=False))
    assert f"text_pair_column to 'data.{second}'" in nested
    assert told([record], Columns(first, None, labelled=False, pair=second)) == []
    assert told([{text: "a"}], Columns(text, None, labelled=False)) == []
    assert told([{"text": "a", **record}]) == []


def from_file(folder: Path, name: str, content: bytes, **dataset: Any) -> DatasetRows:
    """A data set file as a worker reads it, pinned as a request pins it."""
    root, scratch = folder / "root", folder / "scratch"
    root.mkdir()
    scratch.mkdir()
    (root / name).write_bytes(content)
    body = {"base": {"uri": "file:///a"}, "tuned": {"uri": "file:///b"}}
    request = AnalysisRequest.model_validate(body | {"dataset": {"uri": (root / name).as_uri(), **dataset}})
    settings = Settings(model_roots=[root])
    sources = Sources(settings, BlobStore(None, settings.s3_bucket))
    pinned = sources._pin_dataset(request.dataset, labelled=False)
    return read_dataset(request.dataset, pinned, False, sources, scratch / "dataset")


def test_a_compressed_csv_of_pairs_is_read_with_whole_numbers_as_labels(tmp_path: Path) -> None:
    content = "premise;hypothesis;label\na;b;1.0\nc;d;\n".encode("utf-16")
    columns = {"text_column": "premise", "text_pair_column": "hypothesis"}
    found = from_file(tmp_path, "x.csv.gz", gzip.compress(content[:20]) + gzip.compress(content[20:]), **columns)
    assert found.rows == [Row("a", "1", "b"), Row("c", None, "d")]
    assert [warning.code for warning in found.warnings] == ["unlabelled_rows"]


def test_strings_of_json_are_no_numbers(tmp_path: Path) -> None:
    found = from_file(tmp_path, "x.jsonl", b'{"text": "a", "label": "1.0"}\n{"text": "b", "label": 1.0}\n')
    assert found.rows == [Row("a", "1.0"), Row("b", "1")]


def test_inline_pairs_are_rows_of_pairs(tmp_path: Path) -> None:
    inline = {"texts": ["a", "b"], "pairs": ["c", "d"], "labels": [1, "x"]}
    body = {"base": {"uri": "file:///a"}, "tuned": {"uri": "file:///b"}, "dataset": {"inline": inline}}
    settings = Settings(model_roots=[tmp_path])
    pinned = PinnedDataset(source="inline", sha256="0" * 64)
    sources = Sources(settings, BlobStore(None, settings.s3_bucket))
    found = read_dataset(AnalysisRequest.model_validate(body).dataset, pinned, False, sources, tmp_path)
    assert found == ([Row("a", "1", "c"), Row("b", "x", "d")], "0" * 64, [])


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_rows_of_one_group_are_told_in_every_format(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a", "author": "1"}, {"text": "b", "author": "1"}, {"text": "c", "author": None}]
    if name == "x.csv":
        content = b"text,author\na,1\nb,1\nc,\n"
    elif name == "x.jsonl":
        content = b"\n".join(json.dumps(row).encode() for row in rows)
    else:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        content = buffer.getvalue()
    found = from_file(tmp_path, name, content, group_column="author")
    assert [row.group for row in found.rows] == ["1", "1", None]
    assert units_of(found.rows) == (0, 0, 1)
    assert units_of([row._replace(group=None) for row in found.rows]) is None


def test_a_group_column_that_is_missing_is_an_error_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'author'"):
        from_file(tmp_path, "x.csv", b"text\na\nb\n", group_column="author")
