"""What the demo asks for, and how it ends where it cannot run. `make demo` itself takes a real stack."""

from __future__ import annotations

import io
import logging
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from deploy.embedded import demo
from deploy.embedded.demo_inputs import DemoInputs, DownloadError
from deploy.embedded.supervisor import StartError
from layerdrift.contract.errors import LayerdriftError, TransportError
from layerdrift.contract.request import AnalysisRequest

INPUTS = DemoInputs(Path("/home/demo/models/a b"), Path("/home/demo/data/reviews.csv"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[io.StringIO]:
    """What is printed; signals are put back."""
    made = io.StringIO()
    monkeypatch.setattr(demo, "console", Console(file=made, width=200))
    monkeypatch.setenv("LAYERDRIFT_HOME", str(tmp_path))
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield made
    signal.signal(signal.SIGTERM, before)


def test_the_request_survives_the_way_to_the_service() -> None:
    request = demo.demo_request(INPUTS)
    assert AnalysisRequest.model_validate_json(request.model_dump_json()) == request
    assert (request.base.uri, request.dataset.uri) == (
        "file:///home/demo/models/a%20b",
        "file:///home/demo/data/reviews.csv",
    )


def test_without_its_inputs_it_starts_nothing_and_says_why(monkeypatch: pytest.MonkeyPatch, said: io.StringIO) -> None:
    def fetch(folder: Path) -> NoReturn:
        raise DownloadError("pip could not fetch model==1:\nno network")

    def start(environ: Mapping[str, str]) -> NoReturn:
        pytest.fail("a stack was started")

    monkeypatch.setattr(demo, "fetch", fetch)
    monkeypatch.setattr(demo, "Stack", start)
    assert demo.main() == 1
    assert said.getvalue() == "the demo failed: pip could not fetch model==1:\nno network\n"


@pytest.mark.parametrize(
    "error", [StartError("valkey was not ready after 90 s"), TransportError("the service could not be reached")]
)
def test_a_stack_that_cannot_be_used_is_an_error_that_is_said(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO, tmp_path: Path, error: StartError | LayerdriftError
) -> None:
    homes: list[str] = []

    def start(environ: Mapping[str, str]) -> NoReturn:
        homes.append(environ["LAYERDRIFT_HOME"])
        raise error

    monkeypatch.setattr(demo, "fetch", lambda folder: INPUTS)
    monkeypatch.setattr(demo, "Stack", start)
    assert demo.main() == 1
    assert said.getvalue() == f"the demo failed: {error}\n"
    assert homes == [str(tmp_path.resolve() / "demo")]


@pytest.mark.parametrize("detail", ["install layerdrift-server[worker]", "[notice] a new pip", "no folder /a[/b]"])
def test_brackets_in_an_error_are_no_markup(monkeypatch: pytest.MonkeyPatch, said: io.StringIO, detail: str) -> None:
    def fetch(folder: Path) -> NoReturn:
        raise DownloadError(detail)

    monkeypatch.setattr(demo, "fetch", fetch)
    assert demo.main() == 1
    assert said.getvalue() == f"the demo failed: {detail}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped(monkeypatch: pytest.MonkeyPatch, said: io.StringIO, number: signal.Signals) -> None:
    def fetch(folder: Path) -> NoReturn:
        signal.raise_signal(number)
        pytest.fail("it goes on")

    monkeypatch.setattr(demo, "fetch", fetch)
    assert demo.main() == 130
    assert said.getvalue() == "stopped\n"


def test_what_it_wrote_is_named_as_the_reader_would_type_it(
    monkeypatch: pytest.MonkeyPatch, said: io.StringIO, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    demo._say_what_next(tmp_path / "var [v]" / "demo")
    lines = said.getvalue().splitlines()
    assert lines[:4] == [
        "wrote var [v]/demo/report.html",
        "wrote var [v]/demo/report.md",
        "wrote var [v]/demo/report.json",
        "next: open var [v]/demo/report.html in a browser",
    ]
