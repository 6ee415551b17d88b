"""Starts processes, starts them again when they die, and stops them all. Knows nothing of what they do."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A process that ran for so long starts again without waiting."""

POLL_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class StartError(RuntimeError):
    """A process did not become ready."""


@dataclass
class Program:
    """What to run: `ready` is asked until it is true; `grace` seconds lie between asking it to stop and killing it.

    niceness: 0 to 19; a program with more lets others go first where they want the same core.
    """

    name: str
    argv: list[str]
    env: dict[str, str]
    log: Path
    ready: Callable[[], bool]
    grace: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM
    niceness: int = 0


@dataclass
class _Running:
    program: Program
    process: subprocess.Popen[bytes]
    started: float
    backoff: float = FIRST_BACKOFF_SECONDS
    restart_at: float | None = None


@dataclass
class Supervisor:
    """Keeps programs running until it is stopped. `start` and `stop` belong to one thread."""

    _running: list[_Running] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    def start(self, program: Program, timeout: float) -> None:
        """Starts a program and waits until it is ready.

        Raises:
            StartError: it was not ready in time, or ended; the end of its log is in the message.
        """
        with self._lock:
            entry = _Running(program, _spawn(program), time.monotonic())
            self._running.append(entry)
        deadline = time.monotonic() + timeout
        while not program.ready():
            if entry.process.poll() is not None:
                raise StartError(f"{program.name} exited with status {entry.process.returncode}\n{_tail(program.log)}")
            if time.monotonic() > deadline:
                raise StartError(f"{program.name} was not ready after {timeout:g} s\n{_tail(program.log)}")
            time.sleep(0.1)

    def watch(self) -> None:
        """From now on, starts again what dies, with backoff, and says so in the log."""
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()

    def pids(self) -> dict[str, int]:
        """Process ids by program name."""
        with self._lock:
            return {entry.program.name: entry.process.pid for entry in self._running}

    def stop(self) -> None:
        """Stops everything, last started first; what does not end within its grace is killed."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        with self._lock:
            for entry in reversed(self._running):
                _stop(entry)
            self._running.clear()

    def _watch(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            with self._lock:
                for entry in self._running:
                    _revive(entry)


def _revive(entry: _Running) -> None:
    now = time.monotonic()
    if entry.process.poll() is None:
        return
    if entry.restart_at is None:
        if now - entry.started > STEADY_SECONDS:
            entry.backoff = FIRST_BACKOFF_SECONDS
        logger.warning(
            "%s exited with status %s; restarting in %g s",
            entry.program.name,
            entry.process.returncode,
            entry.backoff,
        )
        _kill_group(entry.process.pid)
        entry.restart_at = now + entry.backoff
        entry.backoff = min(entry.backoff * 2, LONGEST_BACKOFF_SECONDS)
    elif now >= entry.restart_at:
        entry.process = _spawn(entry.program)
        entry.started, entry.restart_at = now, None
        logger.warning("%s restarted", entry.program.name)


def _spawn(program: Program) -> subprocess.Popen[bytes]:
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as log:
        return subprocess.Popen(
            program.argv,
            env=program.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=0o077,  # what they keep is nobody else's
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops them in order
            preexec_fn=partial(_prepare, program) if sys.platform == "linux" else None,
        )


def _prepare(program: Program) -> None:
    """Even a supervisor that is killed leaves nothing behind; each program's session has its own share of the cores."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, program.stop_signal)
    os.nice(program.niceness)
    if program.niceness:
        with suppress(OSError), open("/proc/self/autogroup", "w") as share:  # where the kernel shares by session
            share.write(str(program.niceness))


def _stop(entry: _Running) -> None:
    process = entry.process
    if process.poll() is None:
        process.send_signal(entry.program.stop_signal)
        try:
            process.wait(entry.program.grace)
        except subprocess.TimeoutExpired:
            logger.warning("%s did not stop within %g s; killed", entry.program.name, entry.program.grace)
    _kill_group(process.pid)
    process.wait()


def _kill_group(pid: int) -> None:
    """Ends what a process has left behind in its session."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
