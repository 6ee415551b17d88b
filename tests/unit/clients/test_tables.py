from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdrift.backends.tables import (
    Columns,
    Encoding,
    Row,
    TableFormat,
    check_head,
    parse,
    read_lines,
    table_encoding,
)
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
        check_head(head, whole, Encoding("csv"), BOTH, "the file")


def test_a_head_cut_inside_a_character_is_accepted() -> None:
    content = "text,label\nfilm,1\nnaïve é".encode()
    check_head(content[:-1], whole=False, encoding=Encoding("csv"), columns=BOTH, where="the file")


def test_a_line_separator_inside_a_text_ends_no_line() -> None:
    head = '{"text": "one\u2028two\u0085three", "label": 1}\n'.encode()
    check_head(head, whole=True, encoding=Encoding("jsonl"), columns=BOTH, where="the file")


def test_a_byte_order_mark_is_not_part_of_the_first_column() -> None:
    check_head(b"\xef\xbb\xbftext,label\na,1\n", whole=True, encoding=Encoding("csv"), columns=BOTH, where="the file")


@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), min_size=1))
def test_json_lines_gives_back_any_text(texts: list[str]) -> None:
    import json

    lines = [json.dumps({"text": text, "label": "x"}) + "\n" for text in texts]
    assert [row.text for row in parse(lines, "jsonl", BOTH, "the file")] == texts


def test_the_suffix_tells_the_format() -> None:
    assert table_encoding("s3://b/x.NDJSON") == ("jsonl", None)
    assert table_encoding("s3://b/x.csv.GZ") == ("csv", "gz")
    with pytest.raises(InputError, match="must end in one of"):
        table_encoding("s3://b/x.xlsx")


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compressed_tables_are_read_as_what_is_in_them(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    content = b"text,label\n" + b"".join(b"film %d,1\n" % (number * 7919 % 100_000) for number in range(50_000))
    path = tmp_path / f"x.csv.{suffix}"
    path.write_bytes(compress(content))
    encoding = table_encoding(path.name)
    head = path.read_bytes()
    check_head(head, True, encoding, BOTH, "the file")
    if suffix == "gz":  # the others come in blocks, which a head of HEAD_BYTES has
        check_head(head[:5000], False, encoding, BOTH, "the file")
    rows = list(parse(read_lines(path, encoding, 10**6, "the file"), "csv", BOTH, "the file"))
    assert (len(rows), rows[1]) == (50_000, Row("film 7919", "1"))
    with pytest.raises(InputError, match="expands to more than 1000 bytes"):
        list(read_lines(path, encoding, 1000, "the file"))
    path.write_bytes(head[: len(head) // 2])
    with pytest.raises(InputError, match="is damaged, or not compressed as its name says"):
        list(read_lines(path, encoding, 10**6, "the file"))
    with pytest.raises(InputError, match="is damaged"):
        check_head(content, True, encoding, BOTH, "the file")


def test_plain_text_has_a_text_on_every_line_and_no_labels() -> None:
    columns = Columns("text", "label", labelled=False)
    lines = ["one, two\n", '"three"\r\n', "\n", "four"]
    assert [row.text for row in parse(lines, "text", columns, "the file")] == ["one, two", '"three"', "", "four"]
    with pytest.raises(InputError, match="plain text, which has no labels"):
        next(parse(lines, "text", BOTH, "the file"))


def test_a_parquet_file_is_known_by_its_first_bytes() -> None:
    check_head(b"PAR1...", True, Encoding("parquet"), BOTH, "the file")
    with pytest.raises(InputError, match="is no Parquet file"):
        check_head(b"text,label", True, Encoding("parquet"), BOTH, "the file")
    with pytest.raises(InputError, match=r"give the \.parquet file"):
        table_encoding("x.parquet.gz")
