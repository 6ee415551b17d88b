from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from backends.tables.chats import Chat, Turn
from backends.tables.rows import (
    MISSING,
    Columns,
    Row,
    RowReader,
    as_label,
    lookup,
    names_of,
    whole_number_labels,
)
from layerdrift.contract.errors import InputError

MAYBE = Columns("text", None, labelled=False)


def row(record: dict[str, Any], columns: Columns = MAYBE) -> Row:
    return RowReader(columns, "the file").row(record, "line 3")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("pos", "pos"),
        (1, "1"),
        (True, "True"),
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (0.5, "0.5"),
        (1e300, "1e+300"),
        (Decimal("2.00"), "2"),
        (np.float32(3.0), "3"),
        (np.int64(4), "4"),
        (float("nan"), None),
        (None, None),
    ],
)
def test_whole_numbers_are_labels_without_a_decimal_point(value: object, label: str | None) -> None:
    assert as_label(value) == label


@pytest.mark.parametrize(
    ("value", "kind"),
    [([1], "a list"), ({"a": 1}, "an object"), (datetime(2026, 1, 1, tzinfo=UTC), "a datetime")],
)
def test_a_label_of_an_unusable_kind_is_counted_by_its_kind(value: object, kind: str) -> None:
    reader = RowReader(MAYBE, "the file")
    assert reader.row({"text": "a", "label": value}, "line 1") == Row("a", None)
    assert reader.unusable == {kind: 1}
    with pytest.raises(InputError, match=f"line 3: column 'label' contains {kind}; a label must be") as error:
        row({"text": "a", "label": value}, Columns("text", None, labelled=True))
    assert error.value.errors[0].pointer == "/dataset/label_column"


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_text_that_is_null_is_a_blank_one(value: object) -> None:
    assert row({"text": value}) == Row("", None)
    assert row({"text": "a", "pair": value}, Columns("text", None, labelled=False, pair="pair")) == Row("a", None, "")


@pytest.mark.parametrize(
    ("value", "kind"),
    [(3, "an integer"), (0.5, "a number"), (True, "a boolean"), ([1], "a list"), ({}, "an object")],
)
@pytest.mark.parametrize("column", ["text", "pair"])
def test_a_text_of_another_type_names_line_column_and_type(value: object, kind: str, column: str) -> None:
    with pytest.raises(InputError) as error:
        row({"text": "a", "pair": "b", column: value}, Columns("text", None, labelled=False, pair="pair"))
    (problem,) = error.value.errors
    assert problem.pointer == {"text": "/dataset/text_column", "pair": "/dataset/text_pair_column"}[column]
    assert problem.detail == f"the file, line 3: column '{column}' contains {kind}; texts must be strings"


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_a_chat_inside_another_column_is_no_text() -> None:
    with pytest.raises(InputError, match="the model's chat template renders the chats"):
        row({"data": {"messages": TURNS}}, Columns("data.messages", None, labelled=False))


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"messages": TURNS, "label": "a"}, Columns("text", None, labelled=False)),
        ({"messages": TURNS, "label": "a", "text": "other"}, Columns("text", None, labelled=False, format="messages")),
        ({"conversations": TURNS, "label": "a"}, Columns("conversations", None, labelled=False)),
    ],
)
def test_a_chat_is_a_row_with_its_messages(record: dict[str, Any], columns: Columns) -> None:
    found = row(record, columns)
    chat = Chat((Turn("user", "hi"), Turn("assistant", "hello")), place="line 3 of the file")
    assert found == Row("user: hi\nassistant: hello", "a", None, None, chat)


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"messages": TURNS, "text": "a text"}, Columns("text", None, labelled=False)),
        ({"messages": TURNS, "body": "a text"}, Columns("body", None, labelled=False)),
        ({"prompt": "a text", "completion": "b"}, Columns("prompt", None, labelled=False, format="text")),
    ],
)
def test_a_column_of_texts_comes_first(record: dict[str, Any], columns: Columns) -> None:
    assert row(record, columns) == Row("a text", None)


def test_rows_that_are_no_chat_are_counted_and_the_first_is_named() -> None:
    reader = RowReader(Columns("text", None, labelled=False), "x.jsonl")
    for number, messages in enumerate((TURNS, TURNS[:1], TURNS[:1], []), start=1):
        found = reader.row({"messages": messages}, f"line {number}")
        assert (found.text == "") is (number > 1)
    assert reader.no_chats == {"there is no answer of the assistant": 3}
    assert reader.first_no_chat == "line 2"


def test_a_name_with_a_dot_reads_inside_unless_a_key_has_that_very_name() -> None:
    record = {"data": {"text": "inside", "meta": {"text": "deep"}}, "a.b": {"c": "dotted"}, "none": None}
    assert lookup(record, "data.text") == "inside"
    assert lookup(record, "data.meta.text") == "deep"
    assert lookup(record, "a.b.c") == "dotted"
    assert lookup(record, "none.text") is None
    assert lookup(record | {"data.text": "outside"}, "data.text") == "outside"
    assert all(lookup(record, name) is MISSING for name in ("text", "data.other", "nothing.text", "a.b.c.d", "data."))
    assert names_of(record) == ["data", "data.text", "data.meta", "a.b", "a.b.c", "none"]
    with pytest.raises(InputError, match=r"no column 'text'; it has: data, data\.text"):
        row({"data": {"text": "a"}})
    columns = Columns("data.text", "meta.label", labelled=True, pair="data.other")
    nested = {"data": {"text": "a", "other": "b"}, "meta": {"label": 1.0}}
    assert row(nested, columns) == Row("a", "1", "b")


@pytest.mark.parametrize(
    ("labels", "settled"),
    [
        (["1.0", "0.0", "-0.0", "2", None, ""], ["1", "0", "0", "2", None, ""]),
        (["1.0", "1.5", "nan"], ["1", "1.5", None]),
        (["1.0", "good"], ["1.0", "good"]),
        (["1.0", "1_0.0"], ["1.0", "1_0.0"]),
        (["007", "1.50", "12345678901234567890.0"], ["007", "1.50", "12345678901234567890"]),
    ],
)
def test_labels_of_a_table_without_types_are_whole_numbers_where_all_are_numbers(
    labels: list[str | None], settled: list[str | None]
) -> None:
    assert [row.label for row in whole_number_labels([Row("a", label) for label in labels])] == settled
