"""Formats as rows out of a stream of text; whole files, with their encodings and compression, in test_reading."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.tables import formats
from backends.tables.formats import TableFormat, format_inside, header_of, parse
from backends.tables.rows import Columns, Row, RowReader
from layerdrift.contract.errors import InputError

BOTH = Columns("text", "label", labelled=True)
MAYBE = Columns("text", None, labelled=False)


def rows(content: str, format: TableFormat, columns: Columns = BOTH, whole: bool = True) -> list[Row]:
    return list(parse(content.splitlines(keepends=True), format, RowReader(columns, "the file"), whole))


def test_csv_keeps_commas_quotes_and_line_ends_inside_a_cell() -> None:
    content = 'label,text\npos,"one, ""two""\nthree"\nneg,four\n'
    assert rows(content, "csv") == [Row('one, "two"\nthree', "pos"), Row("four", "neg")]


def test_tsv_takes_quotes_as_they_are() -> None:
    assert rows('text\tlabel\n"half open\t1\n', "tsv") == [Row('"half open', "1")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_csv_is_read_off_its_header(delimiter: str) -> None:
    content = f'"the\nlabel"{delimiter}text\n1{delimiter}"a {delimiter} b"\n2{delimiter}"c, d; e | f"\n'
    columns = Columns("text", "the\nlabel", labelled=True)
    assert rows(content, "csv", columns) == [Row(f"a {delimiter} b", "1"), Row("c, d; e | f", "2")]


def test_commas_come_first_where_several_delimiters_show_the_column() -> None:
    assert rows("text,a;text;b\nx,y\n", "csv", MAYBE) == [Row("x", None)]


def test_labels_are_not_asked_for_where_none_is_named() -> None:
    assert rows("text\nhello\n", "csv", MAYBE) == [Row("hello", None)]
    assert rows("text,label\na,1\nb,\n", "csv", MAYBE) == [Row("a", "1"), Row("b", None)]
    lines = '{"text": "a", "label": 1}\n{"text": "b"}\n{"text": "c", "label": 0.5}\n{"text": "d", "label": ""}\n'
    assert rows(lines, "jsonl", MAYBE) == [Row("a", "1"), Row("b", None), Row("c", "0.5"), Row("d", None)]


def test_plain_text_has_a_text_on_every_line() -> None:
    content = 'one, two\n"three"\r\n\nfour'
    assert [row.text for row in rows(content, "text", MAYBE)] == ["one, two", '"three"', "", "four"]


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        ("body,label\na,1\n", "csv", "no column 'text'; it has: body, label"),
        ("text,kind\na,1\n", "csv", "no column 'label'"),
        ("text,label\na\n", "csv", "line 2: 1 cells, but the header has 2"),
        ("", "csv", "is empty"),
        ("", "tsv", "is empty"),
        ("\ntext\na\n", "csv", "has no column 'text'; it has: none"),
        ("text,text,label\na,b,c\n", "csv", "has more than one column"),
        ("text,label,label\na,b,c\n", "csv", "has more than one column"),
        ("{", "jsonl", "line 1: not JSON"),
        ('{"text": "a", "label": 1}\n7\n', "jsonl", "line 2: each row must be a JSON object, not an integer"),
        ('{"text": "a \\ud83d", "label": 1}', "jsonl", "line 1: column 'text' contains half a surrogate pair"),
        ('{"text": "a", "label": "\\ud83d"}', "jsonl", "line 1: column 'label' contains half a surrogate pair"),
        (
            '{"text": "a", "label": []}',
            "jsonl",
            "'label' contains a list; a label must be a string, a number or a bool",
        ),
        ('{"text": "a", "label": null}', "jsonl", "'label' contains null; a label must be"),
        ('{"text": "a", "label": 1}\n{"txt": "b", "label": 1}', "jsonl", "line 2, has no column 'text'"),
    ],
)
def test_a_broken_table_says_which_line_and_why(content: str, format: TableFormat, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows(content, format)


def test_a_field_longer_than_csv_reads_is_named() -> None:
    content = b'"' + b"x" * (formats.MAX_FIELD_CHARACTERS + 1) + b'",text\n'
    with pytest.raises(InputError, match="line 1; field larger than field limit"):
        list(parse([content.decode()], "csv", RowReader(MAYBE, "the file")))


@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), min_size=1))
def test_json_lines_gives_back_any_text(texts: list[str]) -> None:
    lines = [json.dumps({"text": text, "label": "x"}) + "\n" for text in texts]
    assert [row.text for row in parse(lines, "jsonl", RowReader(BOTH, "the file"))] == texts


@given(
    st.lists(st.text(alphabet=st.characters(blacklist_categories=["Cs"])), max_size=5),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
)
def test_a_json_array_gives_back_any_text_whatever_the_pieces(texts: list[str], size: int, indent: int | None) -> None:
    content = json.dumps([{"text": text} for text in texts], indent=indent, ensure_ascii=False)
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    assert [row.text for row in parse(pieces, "json", RowReader(MAYBE, "the file"))] == texts


@pytest.mark.parametrize(
    ("content", "format", "lines"),
    [
        ('text,label\na,1\n"b"c,2\n', "csv", "line 3"),
        ('text,label\n"a\nb,1\n', "csv", "lines 2 to 3"),
    ],
)
def test_a_quote_out_of_place_names_the_lines_of_its_row(content: str, format: TableFormat, lines: str) -> None:
    with pytest.raises(InputError, match=f"the file, {lines}: .*double each quote"):
        rows(content, format)


def test_a_cell_that_the_known_part_of_a_file_cuts_ends_the_rows_there() -> None:
    content = 'text,label\na,1\n"b goes\non'
    assert rows(content, "csv", whole=False) == [Row("a", "1")]
    with pytest.raises(InputError, match="lines 3 to 4"):
        rows(content, "csv")


def test_a_first_row_that_never_ends_is_refused_even_where_more_of_the_file_may_come() -> None:
    with pytest.raises(InputError, match="lines 2 to 3"):
        rows('text,label\n"a\nb', "csv", whole=False)


def test_blank_lines_of_a_table_are_no_rows_and_are_counted_as_lines() -> None:
    assert rows("text,label\n\na,1\n\n", "csv") == [Row("a", "1")]
    with pytest.raises(InputError, match="line 4: 3 cells"):
        rows("text,label\n\na,1\nb,2,3\n", "csv")


def test_an_item_that_the_known_part_of_an_array_cuts_ends_the_rows_there() -> None:
    content = '[{"text": "a"}, {"text": "b'
    assert rows(content, "json", MAYBE, whole=False) == [Row("a", None)]
    with pytest.raises(InputError, match="item 2: not JSON"):
        rows(content, "json", MAYBE)


@pytest.mark.parametrize(
    ("format", "start", "inside"),
    [
        ("json", ' \n[{"text": "a"}]', "json"),
        ("jsonl", '[{"text": "a"}]', "json"),
        ("jsonl", '{"body": "a"}', "jsonl"),
        ("json", '{"text": "a"}', "jsonl"),
        ("json", '{"body": "a"}\n\n {"body": "b"}', "jsonl"),
        ("csv", "[1]", "csv"),
        ("text", '{"text": "a"}', "text"),
    ],
)
def test_arrays_and_lines_of_json_are_told_apart_by_their_first_characters(
    format: TableFormat, start: str, inside: TableFormat
) -> None:
    assert format_inside(format, start, RowReader(MAYBE, "the file")) == inside


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("text,label\na,1\n", "a .json file must begin with"),
        ('{"body": "a"}', r"its keys: body \(a string\)\. Give a list of objects"),
        ('{"rows": [{"text": "a"}], "n": ', r"rows \(a list\), n \(truncated\)\. Give only the list under 'rows'"),
        ("{}", "its keys: none"),
        ("{oops", "its keys: none"),
    ],
)
def test_json_that_holds_no_rows_is_refused_with_what_it_holds(start: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        format_inside("json", start, RowReader(MAYBE, "the file"))


@pytest.mark.parametrize(
    ("lines", "format", "header"),
    [
        (["text;label, or none;group\n"], "csv", ["text", "label, or none", "group"]),
        (['"te\n', 'xt"|label\n', "a|1\n"], "csv", ["te\nxt", "label"]),
        (['"text\tlabel\n'], "tsv", ['"text', "label"]),
        (["text\n"], "csv", ["text"]),
        ([], "csv", []),
        ([], "tsv", []),
    ],
)
def test_the_header_is_split_where_that_gives_the_most_columns(
    lines: list[str], format: TableFormat, header: list[str]
) -> None:
    assert header_of(lines, format) == header
