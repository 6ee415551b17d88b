"""Parquet files as rows, by their schema. That a file can be read at all is looked at in a process, not here."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backends.tables.reading import Columns, Row, RowReader
from backends.tables.rows import ROW_BYTES
from layerdrift.contract.errors import InputError
from workers.stages.resolve import parquet_check
from workers.stages.resolve import parquet_rows as module
from workers.stages.resolve.parquet_check import BATCH_ROWS
from workers.stages.resolve.parquet_check import check as real_check
from workers.stages.resolve.parquet_rows import NESTED_BATCH_ROWS, parquet_rows

MAYBE = Columns("text", None, labelled=False)
BOTH = Columns("text", "label", labelled=True)
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
STAMP = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The columns that were looked at in a process of their own, which these tests do without."""
    found: list[list[str]] = []
    monkeypatch.setattr(parquet_check, "check", lambda path, columns, max_bytes, where: found.append(columns))
    return found


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
        (
            {"messages": [TURNS]},
            Columns("messages", None, False, format="text"),
            "text",
            "the model's chat template renders the chats",
        ),
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
def test_parquet_labels_of_another_type_are_counted_by_it(path: Path, labels: list[Any], kind: str) -> None:
    rows, reader = read(path, {"text": ["a", "b"], "label": labels}, Columns("text", "label", labelled=False))
    assert rows == [Row("a", None), Row("b", None)]
    assert reader.label_seen
    assert list(reader.unusable.values()) == [2]
    assert kind in next(iter(reader.unusable))


def test_only_the_columns_that_are_read_are_looked_at_first(path: Path, checked: list[list[str]]) -> None:
    read(path, {"text": ["a"], "label": ["b"], "other": [1]}, BOTH)
    assert checked == [["text", "label"]]


@pytest.mark.parametrize("count", [0, 1, BATCH_ROWS, BATCH_ROWS + 1])
def test_all_rows_come_in_order_whatever_the_batches(path: Path, count: int) -> None:
    texts = [f"text {number}" for number in range(count)]
    rows, _ = read(path, pa.table({"text": pa.array(texts, pa.string())}))
    assert [row.text for row in rows] == texts


def test_rows_of_structs_are_numbered_across_batches(path: Path) -> None:
    broken = [{"text": b"a"}] * NESTED_BATCH_ROWS + [{"text": b"\xff"}]
    with pytest.raises(InputError, match=f"row {NESTED_BATCH_ROWS + 1}: the bytes in column"):
        read(path, {"data": broken}, Columns("data.text", None, labelled=False))


@pytest.mark.parametrize("kind", ["string", "dictionary", "struct"])
def test_a_string_that_many_rows_share_counts_as_often_as_rows_have_it(path: Path, kind: str) -> None:
    texts, name = pa.array(["x" * 100] * 10), "text"
    table = pa.table({"text": texts.dictionary_encode() if kind == "dictionary" else texts})
    if kind == "struct":
        table, name = pa.table({"data": pa.array([{"text": "x" * 100}] * 10)}), "data.text"
    pq.write_table(table, path)
    size = 10 * (100 + ROW_BYTES)

    def rows(limit: int) -> list[Row]:
        return list(parquet_rows(path, RowReader(Columns(name, None, labelled=False), "x.parquet"), limit))

    assert len(rows(2 * size)) == 10
    with pytest.raises(InputError, match=f"expands to more than {size - 1} bytes"):
        rows(size - 1)


def test_more_rows_than_a_data_set_may_have_are_refused_before_they_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, checked: list[list[str]]
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    assert len(read(path, {"text": ["a", "b"]})[0]) == 2
    checked.clear()
    with pytest.raises(InputError, match="has more than 2 rows; use a subset"):
        read(path, {"text": ["a", "b", "c"]})
    assert checked == []


@pytest.mark.parametrize(("groups", "found"), [([1, 1, None], ["1", "1", None]), (["a", "", "b"], ["a", None, "b"])])
def test_groups_are_whole_numbers_and_strings(path: Path, groups: list[Any], found: list[str | None]) -> None:
    columns = Columns("text", None, labelled=False, group="author")
    rows, _ = read(path, {"text": ["a", "b", "c"], "author": groups}, columns)
    assert [row.group for row in rows] == found


def test_a_group_of_another_type_is_refused_at_its_column(path: Path) -> None:
    columns = Columns("text", None, labelled=False, group="author")
    with pytest.raises(InputError, match="a group must be a string or a number") as raised:
        read(path, {"text": ["a"], "author": [STAMP]}, columns)
    assert raised.value.errors[0].pointer == "/dataset/group_column"


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"messages": [TURNS], "label": ["a"]}, "user: hi\nassistant: hello"),
        ({"prompt": [TURNS[:1]], "completion": [TURNS[1:]], "label": ["a"]}, "user: hi\nassistant: hello"),
        ({"prompt": ["hi"], "completion": [" hello"], "label": ["a"]}, "hi hello"),
        ({"question": ["hi?"], "choices": [["x", "y"]], "answer": [1], "label": ["a"]}, "Question: hi?\nAnswer: y"),
    ],
)
def test_parquet_chats_are_read_by_their_columns(path: Path, table: dict[str, Any], text: str) -> None:
    (row,), _ = read(path, table)
    assert (row.text, row.label) == (text, "a")
    assert row.chat is not None


def test_the_real_check_takes_chats(tmp_path: Path) -> None:
    place = tmp_path / "chats.parquet"
    pq.write_table(pa.table({"messages": [TURNS] * 3}), place)
    real_check(place, ["messages"], 2**30, "chats.parquet")
