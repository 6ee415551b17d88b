from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest

from backends.settings import Settings
from deploy.embedded import __main__ as embedded
from deploy.embedded.supervisor import StartError
from layerdrift.sdk.calls import DEFAULT_URL


class FakeStack:
    """A stack that starts nothing."""

    url = DEFAULT_URL
    error: Exception | None = None
    at_stop: signal.Signals | None = None
    stopped = 0

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.settings = Settings(model_roots=[Path("/models"), Path("/data")])

    def __enter__(self) -> Self:
        if self.error is not None:
            raise self.error
        return self

    def __exit__(self, *_: object) -> None:
        if self.at_stop is not None:
            signal.raise_signal(self.at_stop)
        type(self).stopped += 1


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> type[FakeStack]:
    made = type("FakeStack", (FakeStack,), {})
    monkeypatch.setattr(embedded, "Stack", made)
    return made


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts handlers and levels back; logging is configured for the whole process."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    level = logging.getLogger("httpx").level
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    yield
    logging.getLogger("httpx").setLevel(level)
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped_by(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """A signal comes while the stack runs."""

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            signal.raise_signal(number)
            pytest.fail("it goes on")

    monkeypatch.setattr(embedded, "threading", SimpleNamespace(Event=Interrupted))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_a_signal_and_ends_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stack: type[FakeStack], number: signal.Signals
) -> None:
    stopped_by(monkeypatch, number)
    assert embedded.main() == 0
    assert stack.stopped == 1
    assert capsys.readouterr().out.splitlines() == [
        f"ready {DEFAULT_URL}",
        "file: URIs may refer to anything under /models, /data (LAYERDRIFT_MODEL_ROOTS)",
        "stopped",
    ]


def test_on_another_port_it_says_how_the_command_line_finds_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stack: type[FakeStack]
) -> None:
    stack.url = "http://127.0.0.1:8123"
    stopped_by(monkeypatch, signal.SIGINT)
    embedded.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "ready http://127.0.0.1:8123",
        "for the command line: export LAYERDRIFT_URL=http://127.0.0.1:8123",
    ]


def test_a_second_ctrl_c_does_not_interrupt_the_stop(monkeypatch: pytest.MonkeyPatch, stack: type[FakeStack]) -> None:
    stack.at_stop = signal.SIGINT
    stopped_by(monkeypatch, signal.SIGINT)
    assert embedded.main() == 0
    assert stack.stopped == 1


def test_a_stack_that_cannot_start_says_why(capsys: pytest.CaptureFixture[str], stack: type[FakeStack]) -> None:
    stack.error = StartError("port 80 (LAYERDRIFT_PORT) is taken")
    assert embedded.main() == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "layerdrift could not start: port 80 (LAYERDRIFT_PORT) is taken\n")
