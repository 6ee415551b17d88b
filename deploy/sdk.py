"""Writes the synchronous client from the asynchronous one (`make fmt`); `--check` only compares (`make lint`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

SDK = Path(__file__).parents[1] / "clients" / "layerdrift" / "sdk"
SOURCE, GENERATED = SDK / "aio.py", SDK / "client.py"
REPLACEMENTS = {
    "AsyncClient": "Client",
    "aclose": "close",
    "aconnect_sse": "connect_sse",
    "aiter_bytes": "iter_bytes",
    "aiter_sse": "iter_sse",
    "aread": "read",
    "async_chunks": "chunks",
    "async_prepared": "prepared",
    "async_sleep": "sleep",
}


def generated() -> str:
    """The synchronous client's text."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "aio" / SOURCE.name, Path(folder) / "sync" / SOURCE.name
        given.parent.mkdir()
        given.write_text(SOURCE.read_text())
        rule = unasync.Rule(str(given.parent), str(made.parent), additional_replacements=REPLACEMENTS)
        unasync.unasync_files([str(given)], [rule])
        for arguments in (["check", "--fix", "--select", "I"], ["format"]):
            command = [
                sys.executable,
                "-m",
                "ruff",
                *arguments,
                "--quiet",
                "--config",
                str(SDK.parents[2] / "pyproject.toml"),
            ]
            subprocess.run([*command, str(made)], check=True)
        return made.read_text()


def main(check: bool) -> int:
    """The exit status: 1 where the file is not what it would be."""
    text = generated()
    if check:
        if GENERATED.read_text() == text:
            return 0
        sys.stderr.write(f"{GENERATED.name} differs from what {SOURCE.name} gives: run make fmt\n")
        return 1
    GENERATED.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
