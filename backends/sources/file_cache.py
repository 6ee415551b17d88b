"""Large files that jobs on this machine fetched, kept in bounded disk space for the next job or attempt.

A kept file and the job's are one file under two names (hard links): keeping costs no copy, and a file that is removed
here stays with the jobs that have it. So nobody may write into such a file: who changes one puts another in its place.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SMALLEST = 1 << 20
"""Smaller files are not worth a place."""


@dataclass(frozen=True)
class FileCache:
    """Kept files in a folder; `limit_bytes` for all of them, 0: none is kept."""

    folder: Path
    limit_bytes: int

    def take(self, key: str, target: Path) -> bool:
        """Whether the file of a key was here; then it is at `target` too."""
        kept = self._path(key)
        try:
            os.link(kept, target)
        except OSError:  # not here, or on another disk
            return False
        with suppress(OSError):
            os.utime(kept)
        return True

    def keep(self, key: str, source: Path) -> None:
        """Keeps a whole file; those that nobody took for longest make room. Where that fails nothing is kept."""
        size = source.stat().st_size
        if not SMALLEST <= size <= self.limit_bytes:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.shrink(self.limit_bytes - size)
            os.link(source, self._path(key))

    def shrink(self, limit_bytes: int) -> None:
        """Removes files until the others take no more than so much; oldest first."""
        files = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()
