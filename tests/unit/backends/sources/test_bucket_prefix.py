from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.sources.bucket_prefix import Prefix
from backends.storage.blobs import BlobInfo, BlobStore, Children
from layerdrift.contract.errors import NotFoundError
from tests.builders.stores import MemoryBlobs


class ListedBlobs(MemoryBlobs):
    """A bucket that lists as S3 does; `listed`: the prefixes that it was asked for."""

    def __init__(self, *keys: str) -> None:
        super().__init__()
        self.objects = {key: key.encode() for key in keys}
        self.listed: list[str] = []

    def of_bucket(self, bucket: str) -> BlobStore:
        return self

    def children(self, prefix: str) -> Children:
        self.listed.append(prefix)
        below = {key: key[len(prefix) :] for key in self.objects if key.startswith(prefix)}
        blobs = [self.head(key) for key, name in below.items() if "/" not in name]
        return Children(blobs, sorted({f"{prefix}{name.split('/')[0]}/" for name in below.values() if "/" in name}))

    def head(self, key: str) -> BlobInfo:
        if key not in self.objects:
            raise NotFoundError(f"{key} does not exist")
        return BlobInfo(key, len(self.objects[key]), f"e-{key}")

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        yield self.objects[key]


@pytest.fixture
def bucket() -> ListedBlobs:
    return ListedBlobs("m/config.json", "m/", "m/.DS_Store", "m/best/w", "m/.git/x", "m/__MACOSX/x", "m//x", "mm/y")


def test_a_prefix_shows_its_objects_and_folders_without_junk(bucket: ListedBlobs) -> None:
    prefix = Prefix(bucket, "m/")
    assert [(file.name, file.size, file.version) for file in prefix.files()] == [
        ("config.json", 13, "etag:e-m/config.json")
    ]
    assert prefix.folders() == ["best"]  # `m/` itself is what consoles make of a folder, and no file


def test_a_prefix_is_listed_once(bucket: ListedBlobs) -> None:
    prefix = Prefix(bucket, "m/")
    for _ in range(2):
        prefix.files()
        prefix.folders()
    assert bucket.listed == ["m/"]


def test_nothing_is_asked_of_a_folder_before_it_is_looked_at(bucket: ListedBlobs) -> None:
    inner = Prefix(bucket, "m/").inside("best")
    assert bucket.listed == []
    assert [file.name for file in inner.files()] == ["w"]
    assert (inner.read("w", 4), b"".join(inner.chunks("w"))) == (b"m/be", b"m/best/w")


def test_a_single_object_is_shown_alone_and_its_prefix_is_not_listed(bucket: ListedBlobs) -> None:
    single = Prefix(bucket, "m/", only="config.json")
    assert ([file.name for file in single.files()], single.folders()) == (["config.json"], [])
    assert [file.name for file in Prefix(bucket, "m/", only=".DS_Store").files()] == [".DS_Store"]
    assert bucket.listed == []
    with pytest.raises(NotFoundError):
        Prefix(bucket, "m/", only="absent").files()
