"""`upload:`: one file that was uploaded, or the files of an uploaded zip, read without unpacking it."""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from backends.sources.locations import CHUNK_BYTES, Location, PinnedFile, Tree, is_shown
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from backends.storage.uploads import UploadStore
from layerdrift.contract.errors import NotFoundError
from layerdrift.contract.upload import Upload

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_DIRECTORY_BYTES = 1 << 20
"""Of a zip: the names of its files and what it says of each."""

_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""zipfile expands bzip2 and LZMA without a limit on what comes out."""

MAX_ARCHIVE_FILES = 1000
MAX_RATIO = 100
"""How many times larger than a zip its files may be: weights and vocabularies are not made of repetitions."""

_SMALL_BYTES = 64 << 20
"""Files that may expand as they like."""


def pinned_upload(upload: Upload) -> PinnedFile:
    """An upload as it is pinned; NotFoundError where its bytes have not come."""
    if upload.status != "complete" or upload.bytes is None:
        raise NotFoundError(f"{upload.uri} has no bytes yet; PUT them to /v1/uploads/{upload.id}")
    return PinnedFile(name=upload.filename, size=upload.bytes, version=f"sha256:{upload.sha256}")


class UploadedFile:
    """One file that was uploaded, under the name that it was announced by."""

    def __init__(self, uploads: UploadStore, blobs: BlobStore, tenant: str, upload_id: str) -> None:
        self._upload = uploads.get(tenant, upload_id)
        self._blobs = blobs
        self._key = key_names.upload_object(tenant, upload_id)

    def files(self) -> list[PinnedFile]:
        return [pinned_upload(self._upload)]

    def folders(self) -> list[str]:
        return []

    def inside(self, folder: str) -> Location:
        raise NotFoundError(f"{self._upload.uri} is a file and has no folder {folder}")

    def read(self, name: str, length: int) -> bytes:
        return self._blobs.get(self._key, length=length)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._blobs.chunks(self._key, CHUNK_BYTES)


class _Ranges(io.RawIOBase):
    """An object of a bucket as a file that can be sought in; each read asks for its range alone."""

    def __init__(self, blobs: BlobStore, key: str, size: int) -> None:
        self._blobs = blobs
        self._key = key
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        wanted = min(len(target), self._size - self._position)
        if wanted <= 0:
            return 0
        found = self._blobs.get(self._key, start=self._position, length=wanted)
        target[: len(found)] = found
        self._position += len(found)
        return len(found)


class _Source(io.BufferedReader):
    """The bytes of a zip; until its directory has been read, BadZipFile for more at once than that may have."""

    limit: int | None = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise zipfile.BadZipFile(f"its directory has {size} bytes; the limit is {self.limit}")
        return super().read(size)


class Archive(Tree):
    """The files of a zip that was uploaded, from the folder on that holds them all; nothing is written to disk.

    Raises:
        ValueError: it is no zip, has links or too many files, packs them by another method than deflate, or a file of
            it is larger than it says.
    """

    def __init__(self, file: UploadedFile, blobs: BlobStore, key: str) -> None:
        (pinned,) = file.files()
        self._version = pinned.version
        source = _Source(_Ranges(blobs, key, pinned.size), CHUNK_BYTES)
        try:
            self._zip = zipfile.ZipFile(source)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise ValueError(f"not a readable zip file ({error})") from error
        source.limit = None
        members = [member for member in self._zip.infolist() if not member.filename.endswith("/")]
        if len(members) > MAX_ARCHIVE_FILES:
            raise ValueError(f"the zip contains {len(members)} files; the limit is {MAX_ARCHIVE_FILES}")
        expanded = sum(member.file_size for member in members)
        if expanded > max(_SMALL_BYTES, MAX_RATIO * pinned.size):
            raise ValueError(
                f"its files are {expanded} bytes uncompressed, {expanded // max(1, pinned.size)} times the size of "
                "the zip"
            )
        unbounded = [member.filename for member in members if member.compress_type not in _BOUNDED_METHODS]
        if unbounded:
            raise ValueError(
                f"the zip compresses {unbounded[0]!r} with a method other than deflate; only deflate is supported"
            )
        linked = [member.filename for member in members if (member.external_attr >> 16) & 0o170000 == 0o120000]
        if linked:
            raise ValueError(f"the zip contains links ({linked[0]!r}); only files are supported")
        self._members = {path: member for member in members if is_shown(path := _member_path(member))}
        shared = posixpath.commonpath([posixpath.dirname(path) for path in self._members] or [""])
        self._prefix = f"{shared}/" if shared else ""

    def every_file(self) -> Iterator[PinnedFile]:
        for path, member in sorted(self._members.items()):
            yield PinnedFile(name=path, size=member.file_size, version=self._version)

    def read_path(self, path: str, length: int) -> bytes:
        found = bytearray()
        for chunk in self.chunks_of_path(path):
            found += chunk
            if len(found) >= length:
                break
        return bytes(found[:length])

    def chunks_of_path(self, path: str) -> Iterator[bytes]:
        member = self._members[path]
        done = 0
        try:
            with self._zip.open(member) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    done += len(chunk)
                    if done > member.file_size:
                        raise ValueError(f"{path} is larger than the zip says")
                    yield chunk
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} in the zip is corrupt ({error})") from error


def _member_path(member: zipfile.ZipInfo) -> str:
    """A member's path with slashes: some tools of Windows write backslashes."""
    return str(PurePosixPath(member.filename.replace("\\", "/").lstrip("/")))
