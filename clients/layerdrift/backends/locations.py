"""Folders that files are read from: on this disk, in a bucket, in a zip that was uploaded. `registries` has the rest.

Nothing is executed and nothing is unpickled here; a location gives the files directly in it, and their bytes.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from layerdrift.backends import keys
from layerdrift.backends.blobs import BlobStore
from layerdrift.backends.uploads import UploadStore
from layerdrift.contract.errors import NotFoundError
from layerdrift.contract.upload import Upload

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 8 << 20
MAX_ARCHIVE_FILES = 1000


class PinnedFile(BaseModel):
    """One file as it was when the request came: `version` is an ETag, or the time of its last change."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    version: str


class Location(Protocol):
    """A folder or a prefix: the few verbs that sources need of it."""

    def files(self) -> list[PinnedFile]:
        """The files directly in it."""

    def read(self, name: str, length: int) -> bytes:
        """The first bytes of a file."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's bytes, some megabytes at a time."""


class Folder:
    """A folder of this machine whose files really lie under the allowed roots."""

    def __init__(self, path: Path, roots: list[Path], only: str | None = None) -> None:
        self._path = path
        self._roots = roots
        self._only = only

    def files(self) -> list[PinnedFile]:
        found = []
        for entry in sorted(self._path.iterdir()) if self._only is None else [self._path / self._only]:
            if entry.is_file() and entry.name.isprintable() and within(entry.resolve(), self._roots):
                stat = entry.stat()
                found.append(PinnedFile(name=entry.name, size=stat.st_size, version=f"mtime:{stat.st_mtime_ns}"))
        return found

    def read(self, name: str, length: int) -> bytes:
        with (self._path / name).open("rb") as stream:
            return stream.read(length)

    def chunks(self, name: str) -> Iterator[bytes]:
        with (self._path / name).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


class Prefix:
    """The objects directly under a prefix of a bucket."""

    def __init__(self, store: BlobStore, prefix: str, only: str | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._only = only

    def files(self) -> list[PinnedFile]:
        if self._only is not None:
            found = [self._store.head(self._prefix + self._only)]
        else:
            found = [blob for blob in self._store.list(self._prefix) if "/" not in blob.key[len(self._prefix) :]]
        return [
            PinnedFile(name=blob.key[len(self._prefix) :], size=blob.size, version=f"etag:{blob.etag}")
            for blob in found
            if blob.key != self._prefix
        ]

    def read(self, name: str, length: int) -> bytes:
        return self._store.get(self._prefix + name, length=length)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._store.chunks(self._prefix + name, CHUNK_BYTES)


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
        self._key = keys.upload_object(tenant, upload_id)

    def files(self) -> list[PinnedFile]:
        return [pinned_upload(self._upload)]

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


class Archive:
    """The files of a zip that was uploaded: those at its top, or in its one folder; nothing is written to disk.

    Raises:
        ValueError: it is no zip, has links or too many files, or a file of it is larger than it says.
    """

    def __init__(self, file: UploadedFile, blobs: BlobStore, key: str) -> None:
        (pinned,) = file.files()
        self._version = pinned.version
        source = io.BufferedReader(_Ranges(blobs, key, pinned.size), CHUNK_BYTES)
        try:
            self._zip = zipfile.ZipFile(source)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise ValueError(f"it is no zip that can be read ({error})") from error
        members = [member for member in self._zip.infolist() if not member.is_dir()]
        if len(members) > MAX_ARCHIVE_FILES:
            raise ValueError(f"the zip holds {len(members)} files; {MAX_ARCHIVE_FILES} are read")
        linked = [member.filename for member in members if (member.external_attr >> 16) & 0o170000 == 0o120000]
        if linked:
            raise ValueError(f"the zip holds links ({linked[0]!r}); only files are read")
        tops = {PurePosixPath(member.filename).parts[:-1] for member in members}
        folder = next(iter(tops)) if len(tops) == 1 else ()
        self._members = {
            PurePosixPath(member.filename).name: member
            for member in members
            if PurePosixPath(member.filename).parts[:-1] == folder and ".." not in folder
        }

    def files(self) -> list[PinnedFile]:
        return [
            PinnedFile(name=name, size=member.file_size, version=self._version)
            for name, member in sorted(self._members.items())
        ]

    def read(self, name: str, length: int) -> bytes:
        found = bytearray()
        for chunk in self.chunks(name):
            found += chunk
            if len(found) >= length:
                break
        return bytes(found[:length])

    def chunks(self, name: str) -> Iterator[bytes]:
        member = self._members[name]
        done = 0
        try:
            with self._zip.open(member) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    done += len(chunk)
                    if done > member.file_size:
                        raise ValueError(f"{name} is larger than the zip says")
                    yield chunk
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise ValueError(f"{name} in the zip is broken ({error})") from error


def within(path: Path, roots: list[Path]) -> bool:
    """Whether a real path lies under one of these folders."""
    return any(path.is_relative_to(root) for root in roots)
