"""Folders that files are read from: on this disk, in a bucket, in a zip that was uploaded. `registries` has the rest.

A location shows one folder: the files directly in it, their bytes, and its folders. What operating systems and tools
leave beside them (`__MACOSX`, `.DS_Store`, `.git`) is not shown. Nothing is executed and nothing is unpickled here.
"""

from __future__ import annotations

import copy
import io
import posixpath
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, Self

from pydantic import BaseModel, ConfigDict

from backends.storage import key_names
from backends.storage.blobs import BlobStore, Children
from backends.storage.uploads import UploadStore
from layerdrift.contract.errors import NotFoundError
from layerdrift.contract.upload import Upload

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_DIRECTORY_BYTES = 1 << 20
"""Of a zip: the names of its files and what it says of each."""

_BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""zipfile expands bzip2 and LZMA without a limit on what comes out."""

CHUNK_BYTES = 8 << 20
MAX_ARCHIVE_FILES = 1000
MAX_RATIO = 100
"""How many times larger than a zip its files may be: weights and vocabularies are not made of repetitions."""

_SMALL_BYTES = 64 << 20
"""Files that may expand as they like."""

_JUNK = {"__macosx", "thumbs.db", "desktop.ini", ".ds_store", ".ipynb_checkpoints"}
_JUNK_PREFIXES = ("._", ".git")


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

    def folders(self) -> list[str]:
        """The names of the folders directly in it."""

    def inside(self, folder: str) -> Location:
        """A folder of it, by its path relative to this one; nothing is asked or checked yet."""

    def read(self, name: str, length: int) -> bytes:
        """The first bytes of a file."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's bytes, some megabytes at a time."""


def is_shown(path: str) -> bool:
    """Whether no part of a relative path is junk, or leads out of its folder."""
    return not any(_is_junk(part) or part in ("", ".", "..") for part in path.split("/"))


def _is_junk(name: str) -> bool:
    """Whether an operating system or a tool left this, and no training."""
    return name.lower() in _JUNK or name.startswith(_JUNK_PREFIXES)


class Folder:
    """A folder of this machine whose files really lie under the allowed roots."""

    def __init__(self, path: Path, roots: list[Path], only: str | None = None) -> None:
        self._path = path
        self._roots = roots
        self._only = only

    def files(self) -> list[PinnedFile]:
        found = []
        for entry in self._shown():
            if entry.is_file():
                stat = entry.stat()
                found.append(PinnedFile(name=entry.name, size=stat.st_size, version=f"mtime:{stat.st_mtime_ns}"))
        return found

    def folders(self) -> list[str]:
        return [entry.name for entry in self._shown() if entry.is_dir()]

    def inside(self, folder: str) -> Folder:
        return Folder(self._path / folder, self._roots)

    def _shown(self) -> Iterator[Path]:
        """What is in it and may be read; a link may only lead to what may be read itself."""
        if self._only is not None:
            entries = [self._path / self._only]
        else:
            entries = sorted(entry for entry in self._path.iterdir() if is_shown(entry.name))
        for entry in entries:
            if entry.name.isprintable() and _leads_within(entry, self._roots):
                yield entry

    def read(self, name: str, length: int) -> bytes:
        with (self._path / name).open("rb") as stream:
            return stream.read(length)

    def chunks(self, name: str) -> Iterator[bytes]:
        with (self._path / name).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


class Prefix:
    """The objects directly under a prefix of a bucket; listed once."""

    def __init__(self, store: BlobStore, prefix: str, only: str | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._only = only

    def files(self) -> list[PinnedFile]:
        named = ((blob.key[len(self._prefix) :], blob) for blob in self._children.blobs)
        return [
            PinnedFile(name=name, size=blob.size, version=f"etag:{blob.etag}")
            for name, blob in named
            if self._only is not None or is_shown(name)
        ]

    def folders(self) -> list[str]:
        names = (key[len(self._prefix) : -1] for key in self._children.folders)
        return [name for name in names if is_shown(name)]

    def inside(self, folder: str) -> Prefix:
        return Prefix(self._store, f"{self._prefix}{folder}/")

    @cached_property
    def _children(self) -> Children:
        if self._only is not None:
            return Children([self._store.head(self._prefix + self._only)], [])
        return self._store.children(self._prefix)

    def read(self, name: str, length: int) -> bytes:
        return self._store.get(self._prefix + name, length=length)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._store.chunks(self._prefix + name, CHUNK_BYTES)


class Tree(ABC):
    """A place that lists all its files at once, by paths; shows one folder of them at a time."""

    _prefix = ""

    @abstractmethod
    def every_file(self) -> Iterable[PinnedFile]:
        """The files of all folders, named by their paths."""

    @abstractmethod
    def read_path(self, path: str, length: int) -> bytes:
        """The first bytes of a file of any folder."""

    @abstractmethod
    def chunks_of_path(self, path: str) -> Iterator[bytes]:
        """The bytes of a file of any folder."""

    def files(self) -> list[PinnedFile]:
        return [file for file in self._below() if "/" not in file.name]

    def folders(self) -> list[str]:
        return sorted({file.name.partition("/")[0] for file in self._below() if "/" in file.name})

    def inside(self, folder: str) -> Self:
        view = copy.copy(self)
        view._prefix = f"{self._prefix}{folder}/"
        return view

    def read(self, name: str, length: int) -> bytes:
        return self.read_path(self._prefix + name, length)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self.chunks_of_path(self._prefix + name)

    @cached_property
    def _every(self) -> list[PinnedFile]:
        return list(self.every_file())

    def _below(self) -> Iterator[PinnedFile]:
        """The files of this folder and of those in it, named by their paths from here."""
        for file in self._every:
            name = file.name.removeprefix(self._prefix)
            if file.name.startswith(self._prefix) and is_shown(name):
                yield file.model_copy(update={"name": name})


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


def _leads_within(entry: Path, roots: list[Path]) -> bool:
    """Whether a path, links followed, lies under one of these folders; a loop of links does not."""
    try:
        return within(entry.resolve(), roots)
    except (OSError, RuntimeError):
        return False


def within(path: Path, roots: list[Path]) -> bool:
    """Whether a real path lies under one of these folders."""
    return any(path.is_relative_to(root) for root in roots)
