"""What waits, in both kinds: `aio` uses the coroutines, and `client`, which is generated from it, their namesakes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from layerdrift.sdk.files import Heard, Prepared, prepared

__all__ = ["async_chunks", "async_prepared", "async_sleep", "chunks", "prepared", "sleep"]


def sleep(seconds: float) -> None:
    """Waits."""
    time.sleep(seconds)


async def async_sleep(seconds: float) -> None:
    """Waits, and lets others run."""
    await asyncio.sleep(seconds)


def chunks(file: Prepared, heard: Heard | None) -> Iterator[bytes]:
    """A file's bytes."""
    yield from file.chunks(heard)


async def async_chunks(file: Prepared, heard: Heard | None) -> AsyncIterator[bytes]:
    """A file's bytes, read beside the event loop."""
    source = file.chunks(heard)
    while chunk := await asyncio.to_thread(next, source, b""):
        yield chunk


@asynccontextmanager
async def async_prepared(path: Path) -> AsyncIterator[Prepared]:
    """As `prepared`, beside the event loop: a folder is packed into an archive first."""
    held = prepared(path)
    file = await asyncio.to_thread(held.__enter__)
    try:
        yield file
    finally:
        await asyncio.to_thread(held.__exit__, None, None, None)
