"""Reads a Parquet file once in a process of its own, with a limit on its memory, before a worker reads it.

A damaged file can end the process that reads it, and what a page says of its size is only known once it is expanded.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from layerdrift.contract.errors import InputError

BASE_BYTES = 1 << 30
"""Address space that pyarrow takes before it has read anything, and what a batch may take beside its values."""

BATCH_ROWS = 1024
SECONDS = 600.0


def check(path: Path, columns: list[str], max_bytes: int, where: str) -> None:
    """Whether the columns of a file can be read in memory that is bounded by `max_bytes`.

    Raises:
        InputError: they cannot, for the file is damaged or expands to more.
    """
    limit = BASE_BYTES + 2 * max_bytes
    command = [sys.executable, "-m", "workers.stages.resolve.parquet_check", str(path), json.dumps(columns), str(limit)]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as late:
        detail = f"{where} took more than {SECONDS:g} s to read; use a subset"
        raise InputError.at("/dataset/uri", detail) from late
    if done.returncode == 0:
        return
    said = done.stderr.strip() if done.returncode == 1 else "it is damaged and crashed the process that read it"
    raise InputError.at("/dataset/uri", f"{where} cannot be read as Parquet: {said}")


def flat(schema: pa.Schema, columns: list[str]) -> list[str]:
    """Those of the columns that are no lists: their strings can be read as numbers of a dictionary."""
    return [name for name in columns if name not in schema.names or not pa.types.is_list(schema.field(name).type)]


def main(path: str, columns: str, limit: str) -> None:
    """Reads the columns in batches, in `limit` bytes of address space; exits with 1 and what is wrong."""
    resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pa.set_memory_pool(pa.system_memory_pool())  # others reserve more than they use
    wanted = json.loads(columns)
    try:
        with pq.ParquetFile(path, read_dictionary=flat(pq.read_schema(path), wanted)) as file:
            for _ in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                pass
    except (pa.ArrowMemoryError, MemoryError):
        sys.exit("a part of it expands to more than the limit")
    except (pa.ArrowException, OSError, ValueError) as error:
        sys.exit(str(error)[:500])


if __name__ == "__main__":
    main(*sys.argv[1:])
