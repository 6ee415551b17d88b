"""Every error that layerdrift says to a client, as a tree, and the problem document it turns into (RFC 9457).

LayerdriftError
+-- MalformedError      400  the body is not JSON
+-- InputError          422  the request, or what it points at, is unusable; says what to change
+-- UnauthorizedError   401  no API key, or one that is not known
+-- ForbiddenError      403  the key may not do this
+-- NotFoundError       404  no such analysis
+-- LateError           408  the body of the request did not come in time
+-- ConflictError       409  the analysis is in a state where this cannot be done
+-- TooLargeError       413  what was sent is larger than the service takes
+-- MediaTypeError      415  the body is not sent as JSON
+-- RateError           429  too many requests, or too many open jobs; says when to come back
+-- UnsupportedError    501  this installation cannot do it; says what to install
+-- UnavailableError    503  Redis or S3 is unavailable; try again later
+-- DeadlineError       504  the server did not answer in time
+-- StageError          a stage of a job crashed; becomes the `error` of a failed analysis
+-- TransportError      the client could not reach the service (SDK only)
"""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.plain import visible

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"


MAX_DETAIL_CHARACTERS = 2_000


def sayable(detail: str) -> str:
    """A message that can be sent and shown whatever was quoted in it: its characters whole, and not without end."""
    whole = "\n".join(visible(line) for line in detail.encode("utf-8", "replace").decode().split("\n"))
    return whole if len(whole) <= MAX_DETAIL_CHARACTERS else whole[:MAX_DETAIL_CHARACTERS] + "…"


class FieldProblem(BaseModel):
    """One thing wrong with one place of a request."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into the request body; empty for the whole body")
    detail: str = Field(description="what is wrong there and what to change")


class Problem(BaseModel):
    """An error as RFC 9457 writes it."""

    model_config = ConfigDict(extra="ignore")

    type: str = Field(description="stable identifier of the kind of problem, e.g. `urn:layerdrift:input`")
    title: str = Field(description="short name of the kind of problem")
    status: int = Field(ge=400, le=599, description="HTTP status")
    detail: str = Field(description="what happened and what to change")
    stage: str | None = Field(default=None, description="stage of the job where it happened")
    errors: list[FieldProblem] = Field(default_factory=list, description="invalid places, for bad input")


class LayerdriftError(Exception):
    """Base of all of them. `detail` is written for the person who sent the request."""

    kind = "error"
    title = "Error"
    status = 500

    def __init__(self, detail: str) -> None:
        self.detail = sayable(detail)
        super().__init__(self.detail)

    def problem(self) -> Problem:
        """The problem document of this error."""
        return Problem(type=f"urn:layerdrift:{self.kind}", title=self.title, status=self.status, detail=self.detail)


class InputError(LayerdriftError):
    """The request, or the model or data set that it points at, is unusable.

    `errors` holds every place that is wrong; `at` builds the common case of a single one.
    """

    kind = "input"
    title = "Invalid input"
    status = 422

    def __init__(self, detail: str, errors: list[FieldProblem] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []

    @classmethod
    def at(cls, pointer: str, detail: str) -> InputError:
        """An error at one place of the request."""
        return cls(detail, [FieldProblem(pointer=pointer, detail=sayable(detail))])

    def problem(self) -> Problem:
        return super().problem().model_copy(update={"errors": self.errors})


class MalformedError(LayerdriftError):
    kind = "malformed"
    title = "The body is not JSON"
    status = 400


class MediaTypeError(LayerdriftError):
    kind = "media-type"
    title = "Unsupported media type"
    status = 415


class UnauthorizedError(LayerdriftError):
    kind = "unauthorized"
    title = "API key required"
    status = 401


class ForbiddenError(LayerdriftError):
    kind = "forbidden"
    title = "Permission denied"
    status = 403


class NotFoundError(LayerdriftError):
    kind = "not-found"
    title = "Not found"
    status = 404


class LateError(LayerdriftError):
    kind = "late"
    title = "The request body did not arrive in time"
    status = 408


class ConflictError(LayerdriftError):
    kind = "conflict"
    title = "Not possible in this state"
    status = 409


class TooLargeError(LayerdriftError):
    kind = "too-large"
    title = "Too large"
    status = 413


class RateError(LayerdriftError):
    """`retry_after`: seconds after which the same may be tried again."""

    kind = "rate"
    title = "Too many requests"
    status = 429

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class QuotaError(RateError):
    """`retry_after`: seconds after which the quota frees, or may."""

    kind = "quota"
    title = "Quota used up"


class UnsupportedError(LayerdriftError):
    kind = "unsupported"
    title = "Not supported by this installation"
    status = 501


class UnavailableError(LayerdriftError):
    kind = "unavailable"
    title = "Backend unavailable"
    status = 503


class DeniedError(UnavailableError):
    title = "Backend refused access"


class DeadlineError(LayerdriftError):
    kind = "deadline"
    title = "The service did not respond in time"
    status = 504


class StageError(LayerdriftError):
    """A stage ended in an error that nobody foresaw."""

    kind = "stage"
    title = "A stage of the analysis failed"
    status = 500


class TransportError(LayerdriftError):
    kind = "transport"
    title = "The service could not be reached"
    status = 503
