"""Fetched files that a machine keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.sources import file_cache
from backends.sources.file_cache import FileCache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileCache:
    monkeypatch.setattr(file_cache, "SMALLEST", 4)
    return FileCache(tmp_path / "cache", 30)


def made(folder: Path, name: str, size: int = 10) -> Path:
    path = folder / name
    path.write_bytes(name[0].encode() * size)
    return path


def kept(cache: FileCache, folder: Path) -> set[str]:
    """The keys that are here, by asking for them in another folder's name."""
    found = set()
    for key in "abcd":
        target = folder / f"taken-{key}"
        if cache.take(key, target):
            found.add(key)
            target.unlink()
    return found


def test_a_kept_file_is_taken_without_a_copy(cache: FileCache, tmp_path: Path) -> None:
    source, target = made(tmp_path, "a"), tmp_path / "again"
    assert not cache.take("a", target)
    cache.keep("a", source)
    assert cache.take("a", target)
    assert target.samefile(source)


def test_those_that_nobody_took_for_longest_make_room(cache: FileCache, tmp_path: Path) -> None:
    for age, name in enumerate("abc"):
        cache.keep(name, made(tmp_path, name))
        path = cache._path(name)
        os.utime(path, (1000 + age, 1000 + age))
    assert cache.take("a", tmp_path / "used")  # b is the oldest now
    cache.keep("d", made(tmp_path, "d"))
    assert kept(cache, tmp_path) == {"a", "c", "d"}
    assert (tmp_path / "b").read_bytes() == b"b" * 10  # who has the file keeps it


@pytest.mark.parametrize("size", [3, 31], ids=["too small", "larger than the cache"])
def test_what_is_not_worth_a_place_gets_none(cache: FileCache, tmp_path: Path, size: int) -> None:
    cache.keep("b", made(tmp_path, "b"))
    cache.keep("a", made(tmp_path, "a", size))
    assert kept(cache, tmp_path) == {"b"}


def test_a_cache_of_no_bytes_keeps_nothing(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 0)
    cache.keep("a", made(tmp_path, "a", 2 << 20))
    assert not cache.folder.exists()


def test_a_disk_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = made(tmp_path, "blocked")
    cache = FileCache(blocked, 100 << 20)
    cache.keep("a", made(tmp_path, "a", 2 << 20))
    assert not cache.take("a", tmp_path / "target")
