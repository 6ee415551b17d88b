from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.tables import formats
from backends.tables.reading import (
    HEAD_BYTES,
    Columns,
    Encoding,
    Row,
    RowReader,
    check_head,
    read_rows,
    table_encoding,
)
from layerdrift.contract.errors import InputError

BOTH = Columns("text", "label", labelled=True)
MAYBE = Columns("text", None, labelled=False)
NAMED = Columns("text", "label", labelled=False)
PAIRS = Columns("text", None, labelled=False, pair="pair")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def stored(folder: Path, name: str, content: bytes, columns: Columns = MAYBE) -> list[Row]:
    """What a file of this name and content gives, at the request's check and in the worker."""
    path, encoding = folder / name, table_encoding(name)
    path.write_bytes(content)
    check_head(content[:HEAD_BYTES], len(content) <= HEAD_BYTES, encoding, columns, "the file")
    return list(read_rows(path, encoding, 1 << 26, RowReader(columns, "the file")))


def refusal(folder: Path, name: str, content: bytes, columns: Columns = MAYBE) -> tuple[str, str]:
    """Pointer and words of a refusal at the request's check; the worker refuses the same."""
    path, encoding = folder / name, table_encoding(name)
    path.write_bytes(content)
    with pytest.raises(InputError) as checked:
        check_head(content, True, encoding, columns, "the file")
    with pytest.raises(InputError) as read:
        list(read_rows(path, encoding, 1 << 26, RowReader(columns, "the file")))
    assert read.value.detail == checked.value.detail
    (problem,) = checked.value.errors
    return problem.pointer, problem.detail


def test_a_header_without_the_column_is_shown_as_its_best_delimiter_splits_it(tmp_path: Path) -> None:
    pointer, detail = refusal(tmp_path, "x.csv", b"body;stars\na;1\n")
    assert pointer == "/dataset/text_column"
    assert "split at semicolons, has no column 'text'; it has: body, stars" in detail


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.json"])
@pytest.mark.parametrize(
    ("columns", "pointer"),
    [
        (Columns("text", "stars", labelled=False), "/dataset/label_column"),
        (Columns("body", None, labelled=False), "/dataset/text_column"),
        (Columns("text", None, labelled=False, pair="other"), "/dataset/text_pair_column"),
    ],
)
def test_a_column_that_is_named_must_be_there(tmp_path: Path, name: str, columns: Columns, pointer: str) -> None:
    contents = {
        "x.csv": b"text,label\na,1\nb,2\n",
        "x.tsv": b"text\tlabel\na\t1\nb\t2\n",
        "x.jsonl": b'{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n',
        "x.json": b'[{"text": "a", "label": 1}, {"text": "b", "label": 2}]',
    }
    found, detail = refusal(tmp_path, name, contents[name], columns)
    assert found == pointer
    assert "it has: text, label" in detail


def test_a_named_label_that_some_lines_lack_leaves_those_unlabelled(tmp_path: Path) -> None:
    content = b'{"text": "a"}\n{"text": "b", "label": 1}\n{"text": "c"}\n'
    assert stored(tmp_path, "x.jsonl", content, NAMED) == [Row("a", None), Row("b", "1"), Row("c", None)]
    with pytest.raises(InputError, match="line 1, has no column 'label'; it has: text"):
        stored(tmp_path, "x.jsonl", content, BOTH)


@pytest.mark.parametrize(
    ("columns", "pointer"),
    [
        (Columns("text", "label", labelled=False), "/dataset/label_column"),
        (Columns("text", None, labelled=False, pair="pair"), "/dataset/text_pair_column"),
        (Columns("body", None, labelled=False), "/dataset/text_column"),
        (Columns("text", None, labelled=True), "/dataset/uri"),
    ],
)
def test_plain_text_refuses_what_only_a_table_has(tmp_path: Path, columns: Columns, pointer: str) -> None:
    found, detail = refusal(tmp_path, "x.txt", b"one\ntwo\n", columns)
    assert found == pointer
    assert "plain text" in detail


@pytest.mark.parametrize(
    ("head", "whole", "message"),
    [
        (b"text,label\n", True, "has no rows"),
        (b"text,label\n\xff\xfe,1\n", True, "is not UTF-8"),
        (b"x" * 1000, False, "no line break"),
    ],
)
def test_the_head_of_a_file_is_enough_to_refuse_it(head: bytes, whole: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_head(head, whole, Encoding("csv"), BOTH, "the file")


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "text,label\nnaïve 🎬,1\n"),
        ("x.tsv", "text\tlabel\nnaïve 🎬\t1\n"),
        ("x.jsonl", '{"text": "naïve 🎬", "label": 1}\n'),
        ("x.json", '[{"text": "naïve 🎬", "label": 1}]'),
        ("x.txt", "naïve 🎬\n"),
    ],
)
def test_a_byte_order_mark_tells_the_encoding(
    tmp_path: Path, name: str, content: str, codec: str, compression: str
) -> None:
    raw = content.encode(codec)
    if compression:
        name, raw = f"{name}.{compression}", COMPRESS[compression](raw)
    assert [row.text for row in stored(tmp_path, name, raw)] == ["naïve 🎬"]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_head_cut_inside_a_character_is_accepted(codec: str) -> None:
    content = "text,label\nfilm,1\nnaïve 🎬".encode(codec)
    for cut in range(1, 5):
        check_head(content[:-cut], whole=False, encoding=Encoding("csv"), columns=BOTH, where="the file")


@pytest.mark.parametrize("lines", [3, 200_000])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_another_encoding_is_refused_with_the_place_of_its_first_byte(tmp_path: Path, mark: bytes, lines: int) -> None:
    content = mark + b"text\n" + "naïve é\n".encode() * lines + "caf\xe9\n".encode("latin-1")
    offset, path = content.index(b"caf") + 3, tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        list(read_rows(path, Encoding("csv"), 1 << 26, RowReader(MAYBE, "the file")))
    assert f"not UTF-8: byte 0xE9 at offset {offset}; it is probably Windows-1252 or Latin-1" in error.value.detail
    assert "iconv" in error.value.detail
    if len(content) < HEAD_BYTES:
        assert refusal(tmp_path, "x.csv", content)[1] == error.value.detail


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf_16_without_a_byte_order_mark_is_named(tmp_path: Path, codec: str) -> None:
    assert "without a byte order mark" in refusal(tmp_path, "x.csv", "text\nhello\n".encode(codec))[1]


def test_utf_16_that_ends_inside_a_character_is_refused(tmp_path: Path) -> None:
    content = "text\nhello\n".encode("utf-16")
    assert f"but byte {len(content)} does not decode" in refusal(tmp_path, "x.csv", content + b"a")[1]


def test_a_head_cut_inside_an_item_of_a_json_array_is_accepted() -> None:
    head = b'[{"text": "a"}, {"text": "b"}, {"te'
    check_head(head, whole=False, encoding=Encoding("json"), columns=MAYBE, where="the file")
    with pytest.raises(InputError, match="in its first 2 rows, has no column 'label'; it has: text"):
        check_head(head, whole=False, encoding=Encoding("json"), columns=NAMED, where="the file")


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    content = '{"text": "one\u2028two\u0085three", "label": 1}\n'.encode()
    assert stored(tmp_path, "x.jsonl", content) == [Row("one\u2028two\u0085three", "1")]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz"])
def test_json_arrays_are_streamed_and_may_be_one_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_CHARACTERS", 300_000)
    texts = [f"{number} " + "x" * 100_000 for number in range(30)]
    content = json.dumps([{"text": text, "label": 1} for text in texts]).encode()
    if name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=0)
    assert len(content) > 2 * HEAD_BYTES
    assert stored(tmp_path, name, content) == [Row(text, "1") for text in texts]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, 3]', "item 2: each row must be a JSON object, not an integer"),
        ("[[1]]", "item 1: each row must be a JSON object, not a list"),
        ('[{"text": "a"}, {"text": }]', "item 2: not JSON"),
        ('[{"text": "a"}', "item 1: not JSON .the list is not closed"),
        ('[{"text": "a"} {"text": "b"}]', "missing comma after item 1"),
        ('[{"text": "a"}]\n[{"text": "b"}]', "has content after the list"),
        ("[" * 100_000, "item 1: not JSON"),
        ("[]", "has no rows"),
        ("[", "item 1: not JSON"),
        ("", "is empty"),
        ('"text"', "must begin with"),
    ],
)
def test_a_broken_json_array_says_which_item_and_why(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stored(tmp_path, "x.json", content.encode())


def test_an_item_of_a_json_array_is_bounded_as_a_line_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_CHARACTERS", 1000)
    content = b'[{"text": "a"}, {"text": "' + b"x" * 500_000
    with pytest.raises(InputError, match="item 2 is not JSON, or has 1000 characters or more"):
        stored(tmp_path, "x.json", content)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (
            '{"version": "1", "data": [{"text": "a"}]}',
            "version (a string), data (a list). Give only the list under 'data'",
        ),
        ('{\n "data": [\n  {"text": "a"}\n ]\n}\n', "data (a list). Give only the list under 'data'"),
        ('{"a": [1], "b": [2], "c": {}}', "a (a list), b (a list), c (an object). Give a list of objects"),
        ('{"data": [{"text": "cut', "data (a list). Give only the list under 'data'"),
    ],
)
def test_a_json_object_with_a_list_inside_names_its_keys(tmp_path: Path, content: str, shown: str) -> None:
    pointer, detail = refusal(tmp_path, "x.json", content.encode())
    assert pointer == "/dataset/uri"
    assert f"a single JSON object, not a list of rows; its keys: {shown}" in detail


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    assert stored(tmp_path, "x.json", b'{"text": "a"}\n{"text": "b"}\n') == [Row("a", None), Row("b", None)]
    assert stored(tmp_path, "x.json", b'{"text": "a"}') == [Row("a", None)]
    assert refusal(tmp_path, "x.json", b'{"body": "a"}\n{"body": "b"}\n')[0] == "/dataset/text_column"


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.json"])
def test_a_pair_is_read_from_its_column(tmp_path: Path, name: str) -> None:
    contents = {
        "x.csv": "text,pair\na,b\nc,\n",
        "x.tsv": "text\tpair\na\tb\nc\t\n",
        "x.jsonl": '{"text": "a", "pair": "b"}\n{"text": "c", "pair": null}\n',
        "x.json": '[{"text": "a", "pair": "b"}, {"text": "c", "pair": null}]',
    }
    found = stored(tmp_path, name, contents[name].encode(), PAIRS)
    assert found == [Row("a", None, "b"), Row("c", None, "")]


def test_the_suffix_tells_the_format() -> None:
    assert table_encoding("s3://b/x.NDJSON") == ("jsonl", None)
    assert table_encoding("s3://b/x.csv.GZ") == ("csv", "gz")
    assert table_encoding("s3://b/x.json.xz") == ("json", "xz")
    with pytest.raises(InputError, match="must end in one of"):
        table_encoding("s3://b/x.xlsx")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_tables_are_read_as_what_is_in_them(tmp_path: Path, suffix: str) -> None:
    content = b"text,label\n" + b"".join(b"film %d,1\n" % (number * 7919 % 100_000) for number in range(50_000))
    path = tmp_path / f"x.csv.{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    encoding = table_encoding(path.name)
    head = path.read_bytes()
    check_head(head, True, encoding, BOTH, "the file")
    if suffix == "gz":  # the others come in blocks, which a head of HEAD_BYTES has
        check_head(head[:5000], False, encoding, BOTH, "the file")
    rows = list(read_rows(path, encoding, 10**6, RowReader(BOTH, "the file")))
    assert (len(rows), rows[1]) == (50_000, Row("film 7919", "1"))
    with pytest.raises(InputError, match="expands to more than 1000 bytes"):
        list(read_rows(path, encoding, 1000, RowReader(BOTH, "the file")))
    path.write_bytes(head[: len(head) // 2])
    with pytest.raises(InputError, match="is damaged, or not compressed as its name says"):
        list(read_rows(path, encoding, 10**6, RowReader(BOTH, "the file")))
    with pytest.raises(InputError, match="is damaged"):
        check_head(head[: len(head) // 2], True, encoding, BOTH, "the file")
    for whole in (True, False):
        with pytest.raises(InputError, match="is damaged"):
            check_head(content, whole, encoding, BOTH, "the file")


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("first", [b"", b"text,label\n", b"text,la"])
def test_several_compressed_members_are_one_file(tmp_path: Path, suffix: str, first: bytes) -> None:
    compress = COMPRESS[suffix]
    parts = [first, b"text,label\n"[len(first) :] + b"film,1\n", b"", b"other,2\n"]
    content = b"".join(compress(part) for part in parts)
    assert stored(tmp_path, f"x.csv.{suffix}", content, BOTH) == [Row("film", "1"), Row("other", "2")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.integers(0, 60))
def test_a_head_may_end_anywhere_in_a_later_gzip_member(cut: int) -> None:
    first, second = (
        gzip.compress(b"text,label\nfilm,1\nother,2\nna\xc3"),
        gzip.compress(b"\xafve,3\n" + b"third,3\n" * 9),
    )
    head = (first + second)[: len(first) + min(cut, len(second) - 1)]
    check_head(head, whole=False, encoding=Encoding("csv", "gz"), columns=BOTH, where="the file")


CONTENTS = [
    b'text,label\na,1\n"b\nc",2.0\n',
    b'[{"text": "a", "label": 1.5}, {"text": null}]',
    b'{"text": "a", "label": NaN}\n{"text": {"a": []}}\n',
    b'{"data": [{"text": 1}]}',
    "text;pair\nä;b\n".encode("utf-16"),
    b"\xef\xbb\xbf[ ]",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_and_never_a_crash(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(CONTENTS)))
    place = st.integers(0, 10**4)
    for at, byte in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=3)):
        content.insert(at % len(content), byte)
    name = data.draw(st.sampled_from(["x.csv", "x.tsv", "x.jsonl", "x.json", "x.txt"]))
    suffix = data.draw(st.sampled_from(["", *COMPRESS]))
    if suffix:
        name, content = f"{name}.{suffix}", bytearray(COMPRESS[suffix](bytes(content)))
        content[data.draw(place) % len(content)] ^= data.draw(st.integers(0, 255))
        content = content[: max(1, len(content) - data.draw(st.integers(0, 20)))]
    columns = data.draw(st.sampled_from([MAYBE, NAMED, BOTH, PAIRS, Columns("data.text", None, labelled=False)]))
    path, encoding = tmp_path / "x", table_encoding(name)
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        check_head(bytes(content), data.draw(st.booleans()), encoding, columns, "the file")
    with contextlib.suppress(InputError):
        list(read_rows(path, encoding, 10**6, RowReader(columns, "the file")))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_cut_and_of_another_encoding_is_refused(tmp_path: Path, suffix: str) -> None:
    content = COMPRESS[suffix](b"text\ncaf\xe9 \n")
    assert refusal(tmp_path, f"x.csv.{suffix}", content)[1].startswith("the file is not UTF-8: byte 0xE9 at offset 8")
    path = tmp_path / f"x.csv.{suffix}"
    path.write_bytes(content[:-1])
    with pytest.raises(InputError):
        list(read_rows(path, table_encoding(path.name), 10**6, RowReader(MAYBE, "the file")))


def test_a_parquet_file_is_known_by_its_first_bytes() -> None:
    check_head(b"PAR1...", True, Encoding("parquet"), BOTH, "the file")
    with pytest.raises(InputError, match="is not a Parquet file"):
        check_head(b"text,label", True, Encoding("parquet"), BOTH, "the file")
    with pytest.raises(InputError, match=r"give the \.parquet file"):
        table_encoding("x.parquet.gz")
