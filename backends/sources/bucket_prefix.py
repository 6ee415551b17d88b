"""`s3:`: the objects under a prefix of a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from backends.sources.locations import CHUNK_BYTES, PinnedFile, is_shown
from backends.storage.blobs import BlobStore, Children


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
