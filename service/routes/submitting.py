"""What the routes that submit analyses share: who submits, and the answer."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from backends.api_keys import ANYBODY
from backends.jobs.records import JobRecord
from backends.observability import tracing
from layerdrift.contract.key import ApiKey
from layerdrift.contract.request import AnalysisRequest
from service.use_cases.submit import Requester, Submission


def requester_of(key: ApiKey) -> Requester:
    """What a key says of who submits something with it now."""
    return Requester(
        tenant=key.tenant,
        submitted_by="" if key.id == ANYBODY.id else key.name or key.id,
        open_jobs=key.open_jobs,
        priority=key.priority,
        trace=tracing.current(),
    )


def submission_of(request: AnalysisRequest, key: ApiKey) -> Submission:
    """A request and who makes it."""
    return Submission(**dict(requester_of(key)), request=request)


def accepted(record: JobRecord, status: int) -> JSONResponse:
    """The answer to a POST: the analysis that it made, now or before."""
    analysis = record.analysis()
    return JSONResponse(analysis.model_dump(mode="json"), status_code=status, headers={"Location": analysis.links.self})
