"""Every error that leaves the API, as application/problem+json."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from layerdrift.contract.errors import (
    PROBLEM_MEDIA_TYPE,
    FieldProblem,
    InputError,
    LayerdriftError,
    MalformedError,
    MediaTypeError,
    Problem,
    RateError,
    UnauthorizedError,
    UnavailableError,
    sayable,
)
from layerdrift.contract.explained import explain
from layerdrift.contract.inspection import InspectionRequest
from layerdrift.contract.key import KeyRequest
from layerdrift.contract.plain import visible
from layerdrift.contract.policy import Policy
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import StudyRequest
from layerdrift.contract.upload import UploadRequest

RETRY_AFTER_SECONDS = 5
_UNREADABLE = "There was an error parsing the body"
"""What FastAPI says of a body whose bytes are no text."""

BODIES: tuple[type[BaseModel], ...] = (
    AnalysisRequest,
    StudyRequest,
    Policy,
    InspectionRequest,
    KeyRequest,
    UploadRequest,
)
"""What the API takes."""

MAX_ERRORS = 20
"""Places that one answer names; a body of a million errors gets no answer of a million lines."""

logger = logging.getLogger(__name__)


class ProblemResponse(JSONResponse):
    """A problem document with its status; 503 says when to come back."""

    media_type = PROBLEM_MEDIA_TYPE

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        if problem.status == 503:
            headers = {**(headers or {}), "Retry-After": str(RETRY_AFTER_SECONDS)}
        content = problem.model_dump(mode="json", exclude_none=True)
        super().__init__(content, status_code=problem.status, headers=headers)


def problem_response(error: LayerdriftError, more: Mapping[str, str] | None = None) -> ProblemResponse:
    """The answer that an error of ours is, with more headers where they are given."""
    headers = dict(more or {})
    if isinstance(error, RateError):
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = 'Bearer realm="layerdrift"'
    return ProblemResponse(error.problem(), headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of problem answers with these statuses."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {PROBLEM_MEDIA_TYPE: schema}}
        for status in statuses
    }


def redis_away() -> ProblemResponse:
    """What is said while Redis is unavailable."""
    return ProblemResponse(UnavailableError("Redis could not be reached; try again later").problem())


def install(app: FastAPI) -> None:
    """Makes every error of the app a problem document."""
    app.add_exception_handler(LayerdriftError, _layerdrift)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(redis.RedisError, _redis)
    app.add_exception_handler(Exception, _unforeseen)


def field_problems(errors: Sequence[Any]) -> list[FieldProblem]:
    """pydantic's errors as places in the request body and what to change there."""
    found = [
        FieldProblem(pointer=visible(sayable(_pointer(error))), detail=sayable(_explained(error)))
        for error in errors[:MAX_ERRORS]
    ]
    if len(errors) > MAX_ERRORS:
        found.append(FieldProblem(pointer="", detail=f"and {len(errors) - MAX_ERRORS} more errors"))
    return found


def _pointer(error: dict[str, Any]) -> str:
    """The place in the body; empty for the body as a whole, and for errors elsewhere."""
    place, *path = error["loc"]
    if place != "body" or error["type"] == "json_invalid":
        return ""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _explained(error: dict[str, Any]) -> str:
    place, *path = error["loc"]
    if place != "body":
        return f"{place} parameter {path[-1]}: {explain({**error, 'loc': path})}"
    if not path and error["type"] != "value_error":  # a value error concerns several fields at once
        return "the body must be a JSON object"
    return explain({**error, "loc": path}, _model_of(path, error["type"]))


def _model_of(path: Sequence[Any], kind: str) -> type[BaseModel] | None:
    """The model whose fields a mistyped name is compared with: the one that has the first part of its path."""
    if kind != "extra_forbidden":
        return None
    outer = str(path[0])
    if len(path) > 1:
        return next((model for model in BODIES if outer in model.model_fields), None)
    return max(BODIES, key=lambda model: len(get_close_matches(outer, list(model.model_fields), n=1)))


async def _layerdrift(_: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, LayerdriftError)
    return problem_response(error)


async def _validation(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if any(one["type"] == "json_invalid" for one in errors):
        reason = errors[0].get("ctx", {}).get("error", "it could not be parsed")
        return problem_response(MalformedError(f"the body is not JSON: {reason}"))
    if any(one["loc"] == ("body",) and one["type"] != "missing" for one in errors) and not _sent_json(request):
        given = request.headers.get("content-type", "no Content-Type")
        return problem_response(MediaTypeError(f"send JSON with Content-Type: application/json; this is {given}"))
    found = field_problems(errors)
    detail = "; ".join(f"{problem.pointer}: {problem.detail}".removeprefix(": ") for problem in found)
    return problem_response(InputError(detail, found))


def _sent_json(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


async def _http(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
    if error.status_code == 400 and error.detail == _UNREADABLE:
        return problem_response(MalformedError("the body is not JSON in UTF-8"))
    title = HTTPStatus(error.status_code).phrase
    problem = Problem(type="about:blank", title=title, status=error.status_code, detail=str(error.detail))
    return ProblemResponse(problem, headers)


def _methods(request: Request) -> list[str]:
    """What a path answers, by all routes that have it: Starlette names the methods of the first one alone."""
    found: set[str] = set()
    for route in getattr(request.app.state, "served", request.app.router.routes):
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


async def _redis(_: Request, error: Exception) -> ProblemResponse:
    logger.warning("Redis is unavailable: %s", error)
    return redis_away()


def unforeseen() -> ProblemResponse:
    """What is said of an error that nobody foresaw: nothing of what is inside."""
    detail = "an unforeseen error; the service's log has the details"
    return ProblemResponse(Problem(type="about:blank", title="Internal Server Error", status=500, detail=detail))


async def _unforeseen(request: Request, error: Exception) -> ProblemResponse:
    logger.error("unforeseen error at %s %s", request.method, request.url.path, exc_info=error)
    return unforeseen()
