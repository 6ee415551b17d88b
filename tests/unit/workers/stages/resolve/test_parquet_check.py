"""A Parquet file read once in a process of its own. What such a process refuses: tests/security/test_files.py."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layerdrift.contract.errors import InputError
from workers.stages.resolve.parquet_check import BASE_BYTES, check


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "other": [1, 2]}), path)
    return path


def test_a_sound_file_passes(path: Path) -> None:
    check(path, ["text"], 1 << 20, "x.parquet")


def test_a_damaged_file_is_refused_with_what_the_process_said(path: Path) -> None:
    path.write_bytes(b"PAR1" + path.read_bytes()[10:])
    with pytest.raises(InputError, match=r"^x\.parquet cannot be read as Parquet: \S") as raised:
        check(path, ["text"], 1 << 20, "x.parquet")
    assert raised.value.errors[0].pointer == "/dataset/uri"


def ended(monkeypatch: pytest.MonkeyPatch, code: int | None, said: str = "") -> list[list[str]]:
    """Lets the process end so, or not in time; the commands that were to be run."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize(
    ("code", "said", "message"),
    [
        (1, "a part of it expands\n", "cannot be read as Parquet: a part of it expands$"),
        (-11, "Segmentation fault", "it is damaged and crashed the process that read it$"),
        (134, "terminate called", "it is damaged and crashed the process that read it$"),
        (None, "", r"took more than 600 s to read; use a subset$"),
    ],
    ids=["refused", "killed by a signal", "aborted", "too slow"],
)
def test_a_process_that_does_not_end_well_is_an_error_about_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, said: str, message: str
) -> None:
    ended(monkeypatch, code, said)
    with pytest.raises(InputError, match=message):
        check(path, ["text"], 1 << 20, "x.parquet")


def test_the_limit_of_memory_grows_with_what_a_data_set_may_take(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = ended(monkeypatch, 0)
    check(path, ["a", 'b"'], 1000, "x.parquet")
    check(path, ["a", 'b"'], 5000, "x.parquet")
    assert [int(command[-1]) for command in commands] == [BASE_BYTES + 2000, BASE_BYTES + 10000]
    assert commands[0][-3:-1] == [str(path), '["a", "b\\""]']
