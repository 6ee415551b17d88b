"""Text encodings of data set files: a byte order mark tells UTF-8, UTF-16 or UTF-32; without one it is UTF-8.

Other encodings are never guessed and read: the error says where the file stops being UTF-8 and what it may be.
"""

from __future__ import annotations

import codecs
from typing import IO

from layerdrift.contract.errors import InputError

MARK_BYTES = 4
"""Length of the longest byte order mark."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CHUNK_BYTES = 1 << 20


def codec_of(start: bytes, where: str) -> str:
    """The codec of a file that begins with these bytes.

    Raises:
        InputError: they look like UTF-16 or UTF-32 without a byte order mark.
    """
    codec = next((codec for mark, codec in _MARKS if start.startswith(mark)), None)
    if codec is not None:
        return codec
    if b"\0" in start[:MARK_BYTES]:
        detail = f"{where} looks like UTF-16 or UTF-32 without a byte order mark; save it as UTF-8"
        raise InputError.at("/dataset/uri", detail)
    return "utf-8-sig"


def decode_head(head: bytes, whole: bool, where: str) -> str:
    """The first bytes of a file as text; a character that the head cuts is left out.

    Raises:
        InputError: a byte is not of the file's encoding.
    """
    codec = codec_of(head, where)
    try:
        return _decoder(codec).decode(head, final=whole).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _undecodable(where, codec, error, error.start) from error


def undecodable(stream: IO[bytes], where: str) -> InputError:
    """The error of a file that is not of its encoding: reads it up to the first byte that is not."""
    codec = codec_of(stream.read(MARK_BYTES), where)
    stream.seek(0)
    decoder = _decoder(codec)
    done, chunk = 0, b"start"
    while chunk:
        chunk = stream.read(_CHUNK_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            return _undecodable(where, codec, error, done - pending + error.start)
        done += len(chunk)
    return InputError.at("/dataset/uri", f"{where} changed while it was being read; post it again")


def _decoder(codec: str) -> codecs.IncrementalDecoder:
    """One that counts bytes from the beginning, which that of utf-8-sig does not."""
    return codecs.getincrementaldecoder(codec.removesuffix("-sig"))()


def _undecodable(where: str, codec: str, error: UnicodeDecodeError, offset: int) -> InputError:
    name = codec.removesuffix("-sig").upper()
    if name != "UTF-8":
        detail = f"{where} has a {name} byte order mark, but byte {offset} does not decode; save it as UTF-8"
        return InputError.at("/dataset/uri", detail)
    byte = error.object[error.start]
    return InputError.at(
        "/dataset/uri",
        f"{where} is not UTF-8: byte 0x{byte:02X} at offset {offset}; it is probably Windows-1252 or Latin-1. "
        "Convert it, e.g. with iconv -f WINDOWS-1252 -t UTF-8",
    )
