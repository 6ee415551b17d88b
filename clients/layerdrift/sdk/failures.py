"""From the service's answers to the errors of `contract.errors`."""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from layerdrift.contract.analysis import Analysis
from layerdrift.contract.errors import (
    ConflictError,
    DeadlineError,
    ForbiddenError,
    InputError,
    LateError,
    LayerdriftError,
    MalformedError,
    MediaTypeError,
    NotFoundError,
    Problem,
    QuotaError,
    RateError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from layerdrift.contract.study import Study

_BY_STATUS: dict[int, type[LayerdriftError]] = {
    400: MalformedError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    408: LateError,
    409: ConflictError,
    413: TooLargeError,
    415: MediaTypeError,
    422: InputError,
    501: UnsupportedError,
    503: UnavailableError,
    504: DeadlineError,
}


LONGEST_PAUSE = 3600.0
"""Seconds."""


class AnalysisFailed(LayerdriftError):
    """The analysis ended without a report; `analysis.error` says why."""

    kind = "analysis-failed"
    title = "The analysis has no report"

    def __init__(self, analysis: Analysis) -> None:
        where = f" in stage {analysis.error.stage}" if analysis.error and analysis.error.stage else ""
        reason = analysis.error.detail if analysis.error else "somebody cancelled it"
        super().__init__(f"{analysis.id} {analysis.status}{where}: {reason}")
        self.analysis = analysis


class StudyFailed(LayerdriftError):
    """The study ended without a report; `study.error` says why."""

    kind = "study-failed"
    title = "The study has no report"

    def __init__(self, study: Study) -> None:
        reason = study.error.detail if study.error else "somebody cancelled it"
        super().__init__(f"{study.id} {study.status}: {reason}")
        self.study = study


def error_of(answer: httpx.Response) -> LayerdriftError:
    """The error that an answer stands for."""
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        return LayerdriftError(f"the service answered {answer.status_code}: {answer.text[:500]}")
    kind = _BY_STATUS.get(answer.status_code, LayerdriftError)
    if kind is InputError:
        return InputError(problem.detail, problem.errors)
    if answer.status_code == 429:
        kind_of_limit = QuotaError if is_quota(problem) else RateError
        return kind_of_limit(problem.detail, int(retry_after(answer) or 1))
    return kind(problem.detail)


def is_quota(problem: Problem) -> bool:
    """Whether a limit is one that no waiting of seconds lifts."""
    return problem.type == f"urn:layerdrift:{QuotaError.kind}"


def worth_waiting(answer: httpx.Response) -> bool:
    """Whether an answer that asks to wait may be another one soon; not where a quota is used up."""
    try:
        return not is_quota(Problem.model_validate_json(answer.content))
    except ValidationError:
        return True


def retry_after(answer: httpx.Response) -> float | None:
    """Seconds after which the service wants to be asked again, an hour at most; None where it does not say."""
    said = answer.headers.get("Retry-After", "")
    if not said.isdecimal():
        return None
    return min(float(said), LONGEST_PAUSE) if len(said) < 10 else LONGEST_PAUSE
