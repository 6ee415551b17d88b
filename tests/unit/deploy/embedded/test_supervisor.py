from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy.embedded.supervisor import Program, StartError, Supervisor


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    yield made
    made.stop()


def program(folder: Path, code: str, ready: Callable[[], bool] = lambda: True, grace: float = 5.0) -> Program:
    return Program("it", [sys.executable, "-c", code], dict(os.environ), folder / "it.log", ready, grace)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_program_that_dies_is_started_again(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(program(tmp_path, "import time; time.sleep(100)"), timeout=5)
    supervisor.watch()
    first = supervisor.pids()["it"]
    os.kill(first, signal.SIGKILL)
    until(lambda: supervisor.pids()["it"] != first)
    assert psutil.pid_exists(supervisor.pids()["it"])


def test_a_program_that_keeps_dying_is_given_more_and_more_time(
    tmp_path: Path, supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor.start(program(tmp_path, "print('died')"), timeout=5)
    supervisor.watch()
    until(lambda: sum("restarting in" in line for line in caplog.messages) >= 3)
    waits = [line.rsplit(" in ", 1)[1] for line in caplog.messages if "restarting in" in line]
    assert waits[:3] == ["0.5 s", "1 s", "2 s"]


def test_stopping_leaves_neither_the_program_nor_its_children(tmp_path: Path) -> None:
    supervisor = Supervisor()
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid))\n"
        "time.sleep(100)"
    )
    supervisor.start(program(tmp_path, code, ready=lambda: child.exists() and child.read_text() != ""), timeout=10)
    pids = [supervisor.pids()["it"], int(child.read_text())]
    supervisor.stop()
    until(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids))


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    supervisor = Supervisor()
    up = tmp_path / "up"
    code = (
        "import signal, time, pathlib\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(up)!r}).touch()\ntime.sleep(100)"
    )
    supervisor.start(program(tmp_path, code, ready=up.exists, grace=0.5), timeout=10)
    pid = supervisor.pids()["it"]
    started = time.monotonic()
    supervisor.stop()
    assert not psutil.pid_exists(pid)
    assert time.monotonic() - started < 5


def test_a_program_that_ends_before_it_is_ready_shows_its_log(tmp_path: Path, supervisor: Supervisor) -> None:
    with pytest.raises(StartError, match=r"exited with status 3\n(.|\n)*no such disk"):
        supervisor.start(
            program(tmp_path, "import sys; print('no such disk'); sys.exit(3)", ready=lambda: False), timeout=10
        )


def test_a_program_that_is_never_ready_is_given_up(tmp_path: Path, supervisor: Supervisor) -> None:
    with pytest.raises(StartError, match=r"was not ready after 0\.3 s"):
        supervisor.start(program(tmp_path, "import time; time.sleep(100)", ready=lambda: False), timeout=0.3)


def test_a_program_lets_others_go_first_where_it_is_told_to(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(replace(program(tmp_path, "import time; time.sleep(60)"), niceness=5), timeout=10)
    (pid,) = supervisor.pids().values()
    assert psutil.Process(pid).nice() == psutil.Process().nice() + 5
