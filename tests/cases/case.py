"""What a case is: an input as people have it, and the right answer, asked for through the public entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layerdrift.contract.errors import FieldProblem, InputError
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import AnalysisFailed, Client

Area = Literal["families", "adapters", "quantisation", "checkpoints", "heads", "tokenizers", "data sets", "stores"]
Answer = Literal["supported", "converted", "warned", "refused"]
SECONDS = 120


@dataclass(frozen=True)
class Ground:
    """Where a case is built: a folder under the service's model roots, and a client for uploads."""

    folder: Path
    client: Client


@dataclass(frozen=True)
class Refusal:
    """A problem document. stage: None where the POST was refused, else the job's stage."""

    stage: str | None
    status: int
    errors: list[FieldProblem]
    detail: str


@dataclass(frozen=True)
class Case:
    """A row of the list.

    number: in the list. what: the input, as the documentation names it. answer: what the service does with it.
    note: what a user must know, for the documentation.
    """

    number: str
    area: Area
    what: str
    answer: Answer
    build: Callable[[Ground], dict[str, Any]]
    check: Callable[[Report | Refusal], None]
    note: str = ""

    def asked(self, ground: Ground) -> Report | Refusal:
        """The service's answer: its report, or the refusal of the POST or of the job."""
        client = ground.client
        try:
            analysis = client.submit(AnalysisRequest.model_validate(self.build(ground)))
        except InputError as error:
            return Refusal(None, error.status, error.errors, error.detail)
        try:
            return client.wait(analysis.id, SECONDS)
        except AnalysisFailed as failed:
            problem = failed.analysis.error
        if problem is None:
            raise AssertionError("the analysis ended without a report and without a reason")
        return Refusal(problem.stage, problem.status, problem.errors, problem.detail)


def refused(pointer: str, *words: str, at_post: bool | None = None) -> Callable[[Report | Refusal], None]:
    """A clear refusal: a 422 that points at the thing and says these words."""

    def check(found: Report | Refusal) -> None:
        assert isinstance(found, Refusal), "it was accepted"
        assert found.status == 422, found
        assert found.stage in (None, "resolve", "extract"), found
        if at_post is not None:
            assert (found.stage is None) is at_post, found
        assert pointer in [error.pointer for error in found.errors], found
        assert "failed with" not in found.detail, found
        for word in words:
            assert word.lower() in found.detail.lower(), (word, found.detail)

    return check


def report_with(*checks: Callable[[Report], None]) -> Callable[[Report | Refusal], None]:
    """A report that holds every check."""

    def check(found: Report | Refusal) -> None:
        assert isinstance(found, Report), found
        for one in checks:
            one(found)

    return check


def drift_from(layer: int) -> Callable[[Report], None]:
    """Drift is exactly 0 below a layer, and is seen from it on."""

    def check(report: Report) -> None:
        drift = [one.drift for one in report.layers]
        assert drift[:layer] == [0.0] * layer, drift
        assert all(value > 1e-4 for value in drift[layer:]), drift

    return check


def warns(code: str, *words: str) -> Callable[[Report], None]:
    """A warning of this code that says these words."""

    def check(report: Report) -> None:
        messages = [warning.message for warning in report.warnings if warning.code == code]
        assert messages, [warning.code for warning in report.warnings]
        for word in words:
            assert any(word.lower() in message.lower() for message in messages), (word, messages)

    return check


def silent(code: str) -> Callable[[Report], None]:
    """No warning of this code."""

    def check(report: Report) -> None:
        assert code not in [warning.code for warning in report.warnings]

    return check


def accuracy(expected: float) -> Callable[[Report], None]:
    """The tuned model's accuracy."""

    def check(report: Report) -> None:
        assert report.outputs is not None
        assert report.outputs.tuned is not None
        assert report.outputs.tuned.accuracy is not None
        assert report.outputs.tuned.accuracy.value == expected

    return check


def value(read: Callable[[Report], object], expected: object) -> Callable[[Report], None]:
    """A value of the report."""

    def check(report: Report) -> None:
        assert read(report) == expected

    return check
