"""`file:`: a folder on this disk, under the allowed roots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from backends.sources.locations import CHUNK_BYTES, PinnedFile, is_shown


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
            if entry.name.isprintable() and leads_within(entry, self._roots):
                yield entry

    def read(self, name: str, length: int) -> bytes:
        with (self._path / name).open("rb") as stream:
            return stream.read(length)

    def chunks(self, name: str) -> Iterator[bytes]:
        with (self._path / name).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


def leads_within(entry: Path, roots: list[Path]) -> bool:
    """Whether a path, links followed, lies under one of these folders; a loop of links does not."""
    try:
        return within(entry.resolve(), roots)
    except (OSError, RuntimeError):
        return False


def within(path: Path, roots: list[Path]) -> bool:
    """Whether a real path lies under one of these folders."""
    return any(path.is_relative_to(root) for root in roots)
