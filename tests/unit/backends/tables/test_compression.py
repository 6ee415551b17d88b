from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.tables.compression import COMPRESSIONS, DAMAGED, Compression, expanded_head, open_expanded
from layerdrift.contract.errors import InputError

COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
CONTENT = b"".join(b"film %d\n" % (number * 7919 % 1000) for number in range(200))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_file_is_read_as_what_was_compressed_however_many_members_it_has(
    tmp_path: Path, compression: Compression
) -> None:
    compress, path = COMPRESS[compression], tmp_path / "x"
    path.write_bytes(compress(CONTENT[:100]) + compress(b"") + compress(CONTENT[100:]))
    with open_expanded(path, compression) as stream:
        assert stream.read() == CONTENT


def test_a_file_without_compression_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(CONTENT))
    with open_expanded(tmp_path / "x", None) as stream:
        assert stream.read() == gzip.compress(CONTENT)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw[: len(raw) // 2], lambda raw: CONTENT])
def test_what_reading_a_damaged_file_raises_is_among_the_errors_that_are_named(
    tmp_path: Path, compression: Compression, change: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "x").write_bytes(change(COMPRESS[compression](CONTENT)))
    with open_expanded(tmp_path / "x", compression) as stream, pytest.raises(DAMAGED):
        stream.read()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_no_more_is_expanded_than_was_asked_for(compression: Compression) -> None:
    bomb = COMPRESS[compression](bytes(2_000_000))
    assert expanded_head(bomb, True, compression, 1000, "the file") == (bytes(1000), False)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_whole_file_that_is_shorter_than_was_asked_for_is_known_to_be_whole(compression: Compression) -> None:
    head = COMPRESS[compression](CONTENT)
    assert expanded_head(head, True, compression, len(CONTENT) + 1, "the file") == (CONTENT, True)
    assert expanded_head(head, False, compression, len(CONTENT) + 1, "the file") == (CONTENT, False)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_head_that_ends_anywhere_gives_the_beginning_of_the_content(compression: Compression) -> None:
    raw = COMPRESS[compression](CONTENT)
    for cut in range(2, len(raw)):  # a head has the two bytes that tell gzip
        found, whole = expanded_head(raw[:cut], False, compression, 1 << 20, "the file")
        assert (CONTENT.startswith(found), whole) == (True, False)
    assert expanded_head(raw + raw[:5], False, compression, 1 << 20, "the file") == (CONTENT, False)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_whole_file_that_is_cut_is_damaged(compression: Compression) -> None:
    raw = COMPRESS[compression](CONTENT)
    for cut in (len(raw) - 1, len(raw) // 2, 3):
        with pytest.raises(InputError, match="the file is damaged") as raised:
            expanded_head(raw[:cut], True, compression, 1 << 20, "the file")
        assert [one.pointer for one in raised.value.errors] == ["/dataset/uri"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("whole", [True, False])
def test_a_name_that_says_what_the_bytes_are_not_is_told_from_a_head_that_is_cut(
    compression: Compression, whole: bool
) -> None:
    with pytest.raises(InputError, match="not compressed as its name says"):
        expanded_head(b"text,label\na,1\n" * 10, whole, compression, 1 << 20, "the file")
