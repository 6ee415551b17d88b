"""Data sets as a worker reads them: warnings about labels and pairs, and a request's file in every format."""

from __future__ import annotations

import gzip
import io
import json
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

MAYBE = Columns("text", None, labelled=False)


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


def test_a_group_column_that_is_missing_is_an_error_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'author'"):
        from_file(tmp_path, "x.csv", b"text\na\nb\n", group_column="author")
