"""The Python client of the service: submit a request, follow it, take its report."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Literal, Self

import httpx
from pydantic import ValidationError

from layerdrift.contract.analysis import Analysis, AnalysisPage, Status
from layerdrift.contract.errors import (
    ConflictError,
    DeadlineError,
    ForbiddenError,
    InputError,
    LayerdriftError,
    NotFoundError,
    Problem,
    RateError,
    TooLargeError,
    TransportError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest

POLL_SECONDS = 0.5
OUTAGE_SECONDS = 60.0
"""The service may be away for so long before a watcher gives up."""

_BY_STATUS: dict[int, type[LayerdriftError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    422: InputError,
    501: UnsupportedError,
    503: UnavailableError,
    504: DeadlineError,
}
_ACCEPT = {"html": "text/html", "md": "text/markdown"}


class AnalysisFailed(LayerdriftError):
    """The analysis ended without a report; `analysis.error` says why."""

    kind = "analysis-failed"
    title = "The analysis has no report"

    def __init__(self, analysis: Analysis) -> None:
        where = f" in stage {analysis.error.stage}" if analysis.error and analysis.error.stage else ""
        reason = analysis.error.detail if analysis.error else "somebody cancelled it"
        super().__init__(f"{analysis.id} {analysis.status}{where}: {reason}")
        self.analysis = analysis


class Client:
    """A connection to one service; use it as a context manager, or close it.

    Its key is `api_key`, or LAYERDRIFT_API_KEY of the environment. Every call raises TransportError where the service
    cannot be reached, and the error of `contract.errors` that fits the service's answer.
    """

    def __init__(self, url: str, timeout: float = 70.0, api_key: str | None = None) -> None:
        secret = api_key or os.environ.get("LAYERDRIFT_API_KEY")
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def submit(self, request: AnalysisRequest) -> Analysis:
        """Submits a request; the analysis that it made now, or before."""
        answer = self._call("POST", "/v1/analyses", json=request.model_dump(mode="json"))
        return Analysis.model_validate_json(answer.content)

    def get(self, analysis_id: str) -> Analysis:
        """One analysis as it stands."""
        return Analysis.model_validate_json(self._call("GET", f"/v1/analyses/{analysis_id}").content)

    def list(self, limit: int = 20, cursor: str | None = None, status: Status | None = None) -> AnalysisPage:
        """A page of analyses, newest first."""
        given = {"limit": limit, "cursor": cursor, "status": status.value if status else None}
        params = {name: value for name, value in given.items() if value is not None}
        return AnalysisPage.model_validate_json(self._call("GET", "/v1/analyses", params=params).content)

    def cancel(self, analysis_id: str) -> Analysis:
        """Asks an analysis to stop."""
        return Analysis.model_validate_json(self._call("POST", f"/v1/analyses/{analysis_id}/cancel").content)

    def watch(self, analysis_id: str, timeout: float | None = None) -> Iterator[Analysis]:
        """The analysis again and again until it has ended; the last one is final.

        Outages of up to OUTAGE_SECONDS are waited out.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds; the analysis goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        answered = time.monotonic()
        while True:
            try:
                analysis = self.get(analysis_id)
            except (TransportError, UnavailableError):
                if time.monotonic() - answered > OUTAGE_SECONDS:
                    raise
            else:
                answered = time.monotonic()
                yield analysis
                if analysis.status.final:
                    return
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{analysis_id} has not ended after {timeout:g} s; it goes on")
            time.sleep(POLL_SECONDS)

    def wait(self, analysis_id: str, timeout: float | None = None) -> Report:
        """The report, once there is one.

        Raises:
            AnalysisFailed: it failed or was cancelled.
            TimeoutError: it has not ended after `timeout` seconds.
        """
        (last,) = deque(self.watch(analysis_id, timeout), maxlen=1)
        if last.status is not Status.SUCCEEDED:
            raise AnalysisFailed(last)
        return self.report(analysis_id)

    def report(self, analysis_id: str) -> Report:
        """The report of an analysis that has succeeded."""
        answer = self._call("GET", f"/v1/analyses/{analysis_id}/report", headers={"Accept": "application/json"})
        return Report.model_validate_json(answer.content)

    def rendered_report(self, analysis_id: str, format: Literal["html", "md"]) -> str:
        """The report for people."""
        return self._call("GET", f"/v1/analyses/{analysis_id}/report", headers={"Accept": _ACCEPT[format]}).text

    def _call(self, method: str, path: str, **arguments: object) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **arguments)  # type: ignore[arg-type]
        except httpx.TransportError as error:
            raise TransportError(f"{self._http.base_url} could not be reached: {error}") from error
        if answer.is_success:
            return answer
        raise _error(answer)


def _error(answer: httpx.Response) -> LayerdriftError:
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        return LayerdriftError(f"the service answered {answer.status_code}: {answer.text[:500]}")
    kind = _BY_STATUS.get(answer.status_code, LayerdriftError)
    if kind is InputError:
        return InputError(problem.detail, problem.errors)
    if answer.status_code == 429:
        return RateError(problem.detail, int(answer.headers.get("Retry-After", "1")))
    return kind(problem.detail)
