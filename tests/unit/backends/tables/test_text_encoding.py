from __future__ import annotations

import codecs
import io

import pytest

from backends.tables import text_encoding
from backends.tables.text_encoding import codec_of, decode_head, undecodable
from layerdrift.contract.errors import InputError

TEXT = "naïve 🎬\n"


@pytest.mark.parametrize(
    ("start", "codec"),
    [
        (codecs.BOM_UTF8 + b"a", "utf-8-sig"),
        (codecs.BOM_UTF16_LE + b"a\0", "utf-16"),
        (codecs.BOM_UTF16_BE + b"\0a", "utf-16"),
        (codecs.BOM_UTF32_LE, "utf-32"),  # which begins with the mark of UTF-16
        (codecs.BOM_UTF32_BE, "utf-32"),
        (b"text", "utf-8-sig"),
        (b"", "utf-8-sig"),
        (b"caf\xe9", "utf-8-sig"),  # what it is instead is told by the byte that does not decode
        (b"text\0", "utf-8-sig"),  # a NUL byte later on is a text's own
    ],
)
def test_the_mark_at_the_beginning_tells_the_codec(start: bytes, codec: str) -> None:
    assert codec_of(start, "the file") == codec


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_characters_without_a_mark_are_refused_not_guessed(codec: str) -> None:
    with pytest.raises(InputError, match="without a byte order mark; save it as UTF-8"):
        codec_of("text".encode(codec), "the file")


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_character_that_the_head_cuts_is_left_out_and_the_mark_is_no_part_of_the_text(codec: str) -> None:
    raw = TEXT.encode(codec)
    assert decode_head(raw, True, "the file") == TEXT
    for cut in range(4, len(raw)):
        assert decode_head(raw[:cut], False, "the file") == raw[:cut].decode(codec, "ignore")


def test_a_whole_file_that_ends_inside_a_character_is_refused_with_the_place() -> None:
    with pytest.raises(InputError, match="byte 0xC3 at offset 3"):
        decode_head("café".encode()[:-1], True, "the file")
    raw = "café".encode("utf-16")
    with pytest.raises(InputError, match=f"UTF-16 byte order mark, but byte {len(raw) - 2} does not decode"):
        decode_head(raw[:-1], True, "the file")


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_the_first_wrong_byte_is_found_wherever_reading_pauses(
    chunk: int, mark: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoding, "_CHUNK_BYTES", chunk)
    before = mark + TEXT.encode() * 3
    detail = undecodable(io.BytesIO(before + b"caf\xe9\nmore \xe8"), "the file").detail
    assert f"is not UTF-8: byte 0xE9 at offset {len(before) + 3};" in detail


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_file_that_ends_inside_a_character_names_the_byte_that_begins_it(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoding, "_CHUNK_BYTES", chunk)
    detail = undecodable(io.BytesIO(b"caf\xf0\x9f"), "the file").detail
    assert "byte 0xF0 at offset 3" in detail


def test_a_file_that_decodes_the_second_time_has_changed_meanwhile() -> None:
    assert "changed while it was being read" in undecodable(io.BytesIO(TEXT.encode()), "the file").detail
