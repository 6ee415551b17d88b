"""What is asked of the service, without a connection: both clients send these."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent
from pydantic import BaseModel, ValidationError

from layerdrift.contract.analysis import Analysis, AnalysisPage, Status
from layerdrift.contract.artifact import Artifact, ArtifactList
from layerdrift.contract.comparison import Comparison
from layerdrift.contract.errors import ConflictError, FieldProblem, InputError, LayerdriftError, TransportError
from layerdrift.contract.estimate import Estimate, Sources
from layerdrift.contract.explained import explain
from layerdrift.contract.inspection import Inspection, InspectionRequest
from layerdrift.contract.key import ApiKey, KeyList, KeyRequest, NewKey
from layerdrift.contract.plain import STORED
from layerdrift.contract.policy import Policy, Verdict
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import Study, StudyPage, StudyRequest
from layerdrift.contract.study_policy import StudyPolicy, StudyVerdict
from layerdrift.contract.study_report import StudyReport
from layerdrift.contract.upload import Upload, UploadRequest
from layerdrift.contract.usage import Usage
from layerdrift.sdk.failures import error_of, retry_after, worth_waiting

DEFAULT_URL: Final = "http://127.0.0.1:8000"
URL_VARIABLE, KEY_VARIABLE = "LAYERDRIFT_URL", "LAYERDRIFT_API_KEY"

POLL_SECONDS = 0.5
OUTAGE_SECONDS = 60.0
"""The service may be away for so long before whoever follows a job gives up."""

Stream = Iterable[bytes] | AsyncIterable[bytes]
ReportFormat = Literal["html", "md"]
_ACCEPT: dict[ReportFormat, str] = {"html": "text/html", "md": "text/markdown"}
_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Retries:
    """How often a call is tried again where the service is unavailable (503), asks to wait (429) or cannot be reached.

    Between tries lies a random part of `first` seconds, doubled each time up to `longest` (full jitter), and no less
    than the service's `Retry-After`. 0 `tries`: none is made again.
    """

    tries: int = 4
    first: float = 0.5
    longest: float = 20.0
    source: random.Random = field(default_factory=random.Random, compare=False)

    def pause(self, made: int, call: Call[Any], answer: httpx.Response | None) -> float | None:
        """Seconds until the next try; None: there is none. `made`: tries so far; no `answer`: nobody was reached."""
        if made > self.tries:
            return None
        if answer is None:
            if not call.repeatable:
                return None
        elif (answer.status_code != 429 and not (answer.status_code == 503 and call.repeatable)) or not worth_waiting(
            answer
        ):
            return None
        pause = self.source.uniform(0, min(self.longest, self.first * 2 ** (made - 1)))
        said = retry_after(answer) if answer is not None else None
        return max(pause, said or 0.0)


@dataclass(frozen=True)
class Call(Generic[_T]):
    """One HTTP request and how its answer is read; where it is not `repeatable`, only 429 makes it be sent again."""

    method: str
    path: str
    read: Callable[[httpx.Response], _T]
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True

    def request(self, http: httpx.Client | httpx.AsyncClient, stream: Stream | None = None) -> httpx.Request:
        """The request, for one connection; `stream`: what is sent in place of a body."""
        headers = dict(self.headers)
        content: Stream | str | None = stream
        if self.body is not None:
            content = json.dumps(self.body)
            headers["Content-Type"] = "application/json"
        return http.build_request(self.method, self.path, params=dict(self.params), content=content, headers=headers)

    def result(self, answer: httpx.Response) -> _T:
        """What the answer holds; the error that it stands for."""
        if not answer.is_success:
            raise error_of(answer)
        try:
            return self.read(answer)
        except ValidationError as error:
            raise LayerdriftError(f"{answer.url} answered something that layerdrift does not: {error}") from error


class Event(NamedTuple):
    """An event of an analysis: `stage`, `progress`, `report`, `log` or `done`. `id`: where a stream can be resumed."""

    id: str
    name: str
    data: dict[str, Any]

    @classmethod
    def of(cls, sent: ServerSentEvent) -> Event:
        """From what the service sent."""
        return cls(sent.id, sent.event, json.loads(sent.data) if sent.data else {})


def connection(url: str | None, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments of an httpx client; what is not given comes from LAYERDRIFT_URL and LAYERDRIFT_API_KEY."""
    secret = api_key or os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    base = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    return {"base_url": base, "headers": headers, "timeout": timeout}


def unreachable(url: httpx.URL, error: httpx.TransportError) -> LayerdriftError:
    """The error of a service that nobody answers at."""
    return TransportError(f"{url} could not be reached: {error}")


def retrying(url: str, pause: float, answer: httpx.Response | None) -> str:
    """Why a call is tried again, and when."""
    reason = "does not answer" if answer is None else f"answers {answer.status_code}"
    return f"{url} {reason}; trying again in {pause:.0f} s" if pause >= 1 else f"{url} {reason}; trying again"


def events_path(analysis_id: str) -> str:
    """Where an analysis's events are told."""
    return f"{_path(analysis_id)}/events"


def check(deadline: float | None, id_: str, timeout: float | None, watch: str = "layerdrift watch") -> None:
    """TimeoutError where the time for an analysis or a study is over."""
    if deadline is not None and time.monotonic() > deadline:
        raise TimeoutError(f"timed out after {timeout:g} s; {id_} is still running. Follow it with: {watch} {id_}")


def submit(request: AnalysisRequest | Mapping[str, Any]) -> Call[Analysis]:
    """Sent twice it makes one analysis, so it may be repeated."""
    body = _model(AnalysisRequest, request).model_dump(mode="json")
    return Call("POST", "/v1/analyses", _into(Analysis), body=body)


def estimate(request: AnalysisRequest | Mapping[str, Any]) -> Call[Estimate]:
    """What a request will take."""
    body = _model(AnalysisRequest, request).model_dump(mode="json")
    return Call("POST", "/v1/estimates", _into(Estimate), body=body)


def sources() -> Call[Sources]:
    """Models and data sets that requests can name."""
    return Call("GET", "/v1/sources", _into(Sources))


def get(analysis_id: str) -> Call[Analysis]:
    """One analysis."""
    return Call("GET", f"{_path(analysis_id)}", _into(Analysis))


def page(
    limit: int, cursor: str | None, status: Status | None, name: str | None, tag: str | None
) -> Call[AnalysisPage]:
    """A page of the list."""
    given = {"limit": limit, "cursor": cursor, "status": status.value if status else None, "name": name, "tag": tag}
    params = {key: value for key, value in given.items() if value is not None}
    return Call("GET", "/v1/analyses", _into(AnalysisPage), params=params)


def cancel(analysis_id: str) -> Call[Analysis]:
    """Repeated, it would answer that the analysis has ended."""
    return Call("POST", f"{_path(analysis_id)}/cancel", _into(Analysis), repeatable=False)


def rerun(analysis_id: str) -> Call[Analysis]:
    """The same question for this version of the engine; repeated, it answers with the same analysis."""
    return Call("POST", f"{_path(analysis_id)}/rerun", _into(Analysis))


def delete(analysis_id: str) -> Call[None]:
    """Forgets an analysis."""
    return Call("DELETE", f"{_path(analysis_id)}", lambda _: None, repeatable=False)


def report(analysis_id: str, preliminary: bool = False) -> Call[Report]:
    """The report."""
    path, accept = f"{_path(analysis_id)}/report", {"Accept": "application/json"}
    return Call("GET", path, _finished(_into(Report), preliminary), headers=accept)


def rendered(analysis_id: str, format: ReportFormat, preliminary: bool = False) -> Call[str]:
    """The report for people."""
    accept = {"Accept": _ACCEPT[format]}
    read = _finished(lambda answer: answer.text, preliminary)
    return Call("GET", f"{_path(analysis_id)}/report", read, headers=accept)


def _finished(read: Callable[[httpx.Response], _T], preliminary: bool) -> Callable[[httpx.Response], _T]:
    """How a report is read; a preliminary one only where it was asked for."""

    def checked(answer: httpx.Response) -> _T:
        if not preliminary and answer.headers.get("Layerdrift-Report") == "preliminary":
            raise ConflictError("the analysis is still running, and its report is preliminary")
        return read(answer)

    return checked


def artifacts(analysis_id: str) -> Call[list[Artifact]]:
    """The files that it left."""
    path = f"{_path(analysis_id)}/artifacts"
    return Call("GET", path, lambda answer: _into(ArtifactList)(answer).items)


def compare(analysis_id: str, other_id: str) -> Call[Comparison]:
    """Two reports side by side."""
    path = f"{_path(analysis_id)}/compare/{quote(other_id, safe='')}"
    return Call("GET", path, _into(Comparison))


def gate(analysis_id: str, policy: Policy | Mapping[str, Any]) -> Call[Verdict]:
    """The verdict."""
    path, body = f"{_path(analysis_id)}/gate", _model(Policy, policy).model_dump(mode="json")
    return Call("POST", path, _into(Verdict), body=body)


def inspect(analysis_id: str, texts: list[str], completion_tokens: int) -> Call[Inspection]:
    """Other texts through the pair."""
    asked = {"analysis_id": analysis_id, "texts": texts, "completion_tokens": completion_tokens}
    given = _model(InspectionRequest, asked)
    body = given.model_dump(mode="json")
    return Call("POST", "/v1/inspect", _into(Inspection), body=body)


def announce(request: UploadRequest) -> Call[Upload]:
    """An upload whose bytes are still to come, unless the service has them."""
    return Call("POST", "/v1/uploads", _into(Upload), body=request.model_dump(mode="json"))


def put(upload_id: str) -> Call[Upload]:
    """The bytes of an upload, which are streamed."""
    return Call("PUT", f"/v1/uploads/{upload_id}", _into(Upload))


def submit_study(request: StudyRequest | Mapping[str, Any]) -> Call[Study]:
    """Sent twice it makes one study, so it may be repeated."""
    body = _model(StudyRequest, request).model_dump(mode="json")
    return Call("POST", "/v1/studies", _into(Study), body=body)


def study(study_id: str) -> Call[Study]:
    """One study."""
    return Call("GET", _path(study_id, "studies"), _into(Study))


def studies(limit: int, cursor: str | None, name: str | None, tag: str | None) -> Call[StudyPage]:
    """A page of the list of studies."""
    given = {"limit": limit, "cursor": cursor, "name": name, "tag": tag}
    return Call("GET", "/v1/studies", _into(StudyPage), params={k: v for k, v in given.items() if v is not None})


def cancel_study(study_id: str) -> Call[Study]:
    """Repeated, it would answer that the study has ended."""
    return Call("POST", f"{_path(study_id, 'studies')}/cancel", _into(Study), repeatable=False)


def delete_study(study_id: str) -> Call[None]:
    """Forgets a study."""
    return Call("DELETE", _path(study_id, "studies"), lambda _: None, repeatable=False)


def study_report(study_id: str) -> Call[StudyReport]:
    """The report of a study."""
    path, accept = f"{_path(study_id, 'studies')}/report", {"Accept": "application/json"}
    return Call("GET", path, _into(StudyReport), headers=accept)


def rendered_study(study_id: str, format: ReportFormat) -> Call[str]:
    """The report of a study for people."""
    path, accept = f"{_path(study_id, 'studies')}/report", {"Accept": _ACCEPT[format]}
    return Call("GET", path, lambda answer: answer.text, headers=accept)


def gate_study(study_id: str, policy: StudyPolicy | Mapping[str, Any]) -> Call[StudyVerdict]:
    """The verdict on a study."""
    path, body = f"{_path(study_id, 'studies')}/gate", _model(StudyPolicy, policy).model_dump(mode="json")
    return Call("POST", path, _into(StudyVerdict), body=body)


def usage(tenant: str | None) -> Call[Usage]:
    """What a tenant has used, and its quota."""
    return Call("GET", "/v1/usage", _into(Usage), params={"tenant": tenant} if tenant else {})


def keys() -> Call[list[ApiKey]]:
    """The tenant's keys."""
    return Call("GET", "/v1/keys", lambda answer: _into(KeyList)(answer).items)


def create_key(request: KeyRequest | Mapping[str, Any]) -> Call[NewKey]:
    """Repeated, it would make another one. Limits that were not set are left to the service."""
    body = _model(KeyRequest, request).model_dump(mode="json", exclude_unset=True)
    return Call("POST", "/v1/keys", _into(NewKey), body=body, repeatable=False)


def revoke_key(key_id: str) -> Call[None]:
    """Makes a key useless."""
    return Call("DELETE", f"/v1/keys/{key_id}", lambda _: None, repeatable=False)


def _into(kind: type[_Model]) -> Callable[[httpx.Response], _Model]:
    """How an answer of a kind is read."""
    return lambda answer: kind.model_validate_json(answer.content, context=STORED)


def _model(kind: type[_Model], given: _Model | Mapping[str, Any]) -> _Model:
    """What was given as a model; InputError where a mapping is none, with every field that is wrong."""
    if isinstance(given, kind):
        return given
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problems = [
            FieldProblem(
                pointer="".join(f"/{part}" for part in one["loc"]),
                detail=f"{'.'.join(map(str, one['loc']))}: {explain(one, kind)}".removeprefix(": "),
            )
            for one in error.errors()
        ]
        raise InputError("; ".join(one.detail for one in problems), problems) from error


def _path(reference: str, kind: Literal["analyses", "studies"] = "analyses") -> str:
    """The path of an analysis or a study.

    Raises:
        InputError: a name that no path can hold.
    """
    if "/" in reference or reference in ("", ".", ".."):
        one = "an analysis" if kind == "analyses" else "a study"
        raise InputError(f"{reference!r} is no reference to {one}: give its id, the start of it, or `latest`")
    return f"/v1/{kind}/{quote(reference, safe='')}"
