"""Compressed files: opening them whole, and expanding the first bytes of one. Knows nothing of what is inside.

Files of several gzip members, bzip2 streams or xz streams are read as one, as the command-line tools read them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any, Literal

from layerdrift.contract.errors import InputError

Compression = Literal["gz", "bz2", "xz"]
COMPRESSIONS: tuple[Compression, ...] = ("gz", "bz2", "xz")
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file raises that is cut short, or not compressed as its name says."""

_OPENERS: dict[Compression, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


def open_expanded(path: Path, compression: Compression | None) -> IO[bytes]:
    """A file's bytes as they were before it was compressed; reading them may raise one of DAMAGED."""
    if compression is None:
        return path.open("rb")
    stream: IO[bytes] = _OPENERS[compression](path)
    return stream


def expanded_head(head: bytes, whole: bool, compression: Compression, length: int, where: str) -> tuple[bytes, bool]:
    """The first `length` bytes of what is compressed, and whether they are all of it.

    Args:
        head: the first bytes of the compressed file.
        whole: they are the whole file; else it may end anywhere.

    Raises:
        InputError: the file is damaged, or not compressed as its name says.
    """
    found = bytearray()
    source = io.BytesIO(head)
    try:
        with _OPENERS[compression](source) as stream:
            while len(found) < length:
                chunk = stream.read1(length - len(found))
                if not chunk:
                    return bytes(found), whole
                found += chunk
    except DAMAGED as error:
        if whole or not _cut(error, bool(found) and source.tell() == len(head)):
            raise damaged(where) from error
    return bytes(found), False


def _cut(error: Exception, at_the_end: bool) -> bool:
    """Whether an error is only that the head ends: inside a member, or inside the first bytes of the next one."""
    return isinstance(error, EOFError) or (isinstance(error, gzip.BadGzipFile) and at_the_end)


def damaged(where: str) -> InputError:
    """A file that is not compressed as its name says."""
    return InputError.at("/dataset/uri", f"{where} is damaged, or not compressed as its name says")
