"""Devices as torch sees them, one for each process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers import devices as module
from workers.devices import COUNT, MEMORY, VISIBLE, device_memory_bytes, devices, take_one


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known at first, and nothing stays."""
    monkeypatch.setenv(COUNT, "")
    monkeypatch.delenv(COUNT)
    monkeypatch.setenv(MEMORY, "")
    monkeypatch.delenv(MEMORY)
    monkeypatch.setenv(VISIBLE, "")


def test_torch_is_not_asked_where_no_driver_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_asked", lambda: pytest.fail("nobody has to ask"))
    assert devices(tmp_path) == 0


@pytest.mark.parametrize("node", ["nvidia0", "dxg"])
def test_a_driver_alone_is_no_device(tmp_path: Path, node: str) -> None:
    """This torch is asked, whatever it was made for."""
    (tmp_path / node).touch()
    assert devices(tmp_path) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_torch_is_asked_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(2, 24 << 30)])
    monkeypatch.setattr(module, "_asked", lambda: next(answers))
    (tmp_path / "nvidia0").touch()
    assert [devices(tmp_path), devices(tmp_path)] == [2, 2]
    assert device_memory_bytes() == 24 << 30


@pytest.mark.parametrize(
    "answer",
    [subprocess.CalledProcessError(1, "python"), OSError("no memory"), SimpleNamespace(stdout="a warning\n")],
    ids=["torch breaks", "no process", "no number"],
)
def test_a_torch_that_does_not_answer_leaves_the_cpu(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    assert module._asked() == (0, 0)


@pytest.mark.parametrize(
    ("count", "visible", "taken"),
    [
        ("2", "", ["0", "1", "0"]),
        ("2", "3,GPU-7", ["3", "GPU-7", "3"]),
        ("1", "", ["0", "0", "0"]),
    ],
)
def test_each_process_has_a_device_of_its_own_while_there_are_some(
    count: str, visible: str, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for process in range(3):
        monkeypatch.setenv(COUNT, count)
        monkeypatch.setenv(VISIBLE, visible)
        take_one(process)
        found.append(os.environ[VISIBLE])
    assert found == taken


def test_without_devices_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COUNT, "0")
    take_one(1)
    assert os.environ[VISIBLE] == ""
    assert device_memory_bytes() is None
