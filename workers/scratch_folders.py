"""The folder of a job that runs on this machine, and those that killed workers left.

A lock that ends with its process says which is which: a lease may be lost, to an outage of Redis say, while the job
still works in its folder.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

_LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Inside, the folder is in use; it need not be there. Afterwards it is gone.

    Where nothing can be written there is no lock either: the job's first stage says what is wrong.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(_lock_of(folder).open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            remove(folder)


def left_behind(scratch: Path, older_than: float) -> Iterator[Path]:
    """Folders that no process uses and that were last touched before a time, in seconds since 1970."""
    for path in sorted(scratch.iterdir()) if scratch.is_dir() else ():
        folder = path.with_suffix("") if path.suffix == _LOCK else path
        try:
            if path.stat().st_mtime < older_than and not _in_use(folder):
                yield folder
        except FileNotFoundError:  # its job has just ended
            continue


def remove(folder: Path) -> None:
    """Removes a folder that was left behind, and its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        _lock_of(folder).unlink()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)


def _in_use(folder: Path) -> bool:
    try:
        with _lock_of(folder).open("r") as file:
            return not _locked(file)
    except FileNotFoundError:
        return False


def _locked(file: IO[str]) -> bool:
    """Whether the lock was free; it is again at once."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True
