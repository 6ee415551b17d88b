"""Folders that files are read from, whatever the scheme: what they show, and how their files are pinned.

A location shows one folder: the files directly in it, their bytes, and its folders. What operating systems and tools
leave beside them (`__MACOSX`, `.DS_Store`, `.git`) is not shown. Nothing is executed and nothing is unpickled here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Protocol, Self

from pydantic import BaseModel, ConfigDict

CHUNK_BYTES = 8 << 20

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
