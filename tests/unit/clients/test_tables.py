from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdrift.backends.tables import Columns, Row, TableFormat, check_head, parse, table_format
from layerdrift.contract.errors import InputError

BOTH = Columns("text", "label", labelled=True)
MAYBE = Columns("text", "label", labelled=False)


def rows(content: str, format: TableFormat, columns: Columns = BOTH) -> list[Row]:
    return list(parse(content.splitlines(keepends=True), format, columns, "the file"))


def test_csv_keeps_commas_quotes_and_line_ends_inside_a_cell() -> None:
    content = 'label,text\npos,"one, ""two""\nthree"\nneg,four\n'
    assert rows(content, "csv") == [Row('one, "two"\nthree', "pos"), Row("four", "neg")]


def test_tsv_takes_quotes_as_they_are() -> None:
    assert rows('text\tlabel\n"half open\t1\n', "tsv") == [Row('"half open', "1")]


def test_json_lines_turns_integers_and_truth_values_into_labels() -> None:
    content = '{"text": "a", "label": 1}\n\n{"text": "b", "label": true}\n'
    assert rows(content, "jsonl") == [Row("a", "1"), Row("b", "True")]


def test_labels_are_not_asked_for_where_nothing_is_tuned() -> None:
    assert rows("text\nhello\n", "csv", MAYBE) == [Row("hello", None)]
    assert rows("text,label\na,1\nb,\n", "csv", MAYBE) == [Row("a", "1"), Row("b", None)]
    lines = '{"text": "a", "label": 1}\n{"text": "b"}\n{"text": "c", "label": 0.5}\n{"text": "d", "label": ""}\n'
    assert rows(lines, "jsonl", MAYBE) == [Row("a", "1"), Row("b", None), Row("c", None), Row("d", None)]


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        ("body,label\na,1\n", "csv", "no column 'text'; it has: body, label"),
        ("text,kind\na,1\n", "csv", "no column 'label'"),
        ("text,label\na\n", "csv", "line 2: 1 cells, but the header names 2"),
        ("", "csv", "is empty"),
        ("{", "jsonl", "line 1: not JSON"),
        ("[1]", "jsonl", "line 1: not a JSON object"),
        ('{"text": 3, "label": "x"}', "jsonl", "line 1: 'text' is not a string"),
        ('{"text": "a \\ud83d", "label": 1}', "jsonl", "line 1: half a surrogate pair"),
        ("text,text,label\na,b,c\n", "csv", "more than once in its header"),
        ('{"text": "a", "label": 0.5}', "jsonl", "must be a string, an integer or a truth value"),
        ('{"text": "a", "label": null}', "jsonl", "must be a string, an integer or a truth value"),
        ('{"text": "a", "label": 1}\n{"txt": "b", "label": 1}', "jsonl", "line 2, has no column 'text'"),
    ],
)
def test_a_broken_table_says_which_line_and_why(content: str, format: TableFormat, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows(content, format)


@pytest.mark.parametrize(
    ("head", "whole", "message"),
    [
        (b"text,label\n", True, "holds no rows"),
        (b"text,label\n\xff\xfe,1\n", True, "is not UTF-8"),
        (b"x" * 1000, False, "no end of line"),
    ],
)
def test_the_head_of_a_file_is_enough_to_refuse_it(head: bytes, whole: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_head(head, whole, "csv", BOTH, "the file")


def test_a_head_cut_inside_a_character_is_accepted() -> None:
    content = "text,label\nfilm,1\nnaïve é".encode()
    check_head(content[:-1], whole=False, format="csv", columns=BOTH, where="the file")


def test_a_line_separator_inside_a_text_ends_no_line() -> None:
    head = '{"text": "one\u2028two\u0085three", "label": 1}\n'.encode()
    check_head(head, whole=True, format="jsonl", columns=BOTH, where="the file")


def test_a_byte_order_mark_is_not_part_of_the_first_column() -> None:
    check_head(b"\xef\xbb\xbftext,label\na,1\n", whole=True, format="csv", columns=BOTH, where="the file")


@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), min_size=1))
def test_json_lines_gives_back_any_text(texts: list[str]) -> None:
    import json

    lines = [json.dumps({"text": text, "label": "x"}) + "\n" for text in texts]
    assert [row.text for row in parse(lines, "jsonl", BOTH, "the file")] == texts


def test_the_suffix_tells_the_format() -> None:
    assert table_format("s3://b/x.NDJSON") == "jsonl"
    with pytest.raises(InputError, match="must end in one of"):
        table_format("s3://b/x.xlsx")
