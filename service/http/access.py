"""Who asks, and what they may: API keys as FastAPI dependencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from backends.api_keys import bearer, require
from backends.deployment import Deployment
from backends.jobs.listing import ANALYSIS_ID
from layerdrift.contract.key import ApiKey, Scope
from service.http import audit

_SCHEME = HTTPBearer(auto_error=False, description="an API key; not required until the first one is created")


def _deployment(request: Request) -> Deployment:
    deployment: Deployment = request.app.state.deployment
    return deployment


CurrentDeployment = Annotated[Deployment, Depends(_deployment)]
REFERENCE: Final = "an id (an_…), the first characters of one, a name, or `latest`"

Reference = Annotated[str, Path(max_length=200, description=REFERENCE)]


def _allowed(scope: Scope) -> Callable[..., ApiKey]:
    """A dependency: the key of a request that may do this. 401, 403 or 429 else."""

    def check(request: Request, deployment: CurrentDeployment, _: Annotated[object, Depends(_SCHEME)]) -> ApiKey:
        key = deployment.keys.find(bearer(request.headers.get("Authorization")))
        setattr(request.state, audit.KEY, key)
        require(key, scope)
        deployment.keys.count_request(key)
        return key

    return check


def _resolved(request: Request, deployment: CurrentDeployment, reference: str) -> str:
    """The id that a reference stands for, among the analyses of whoever asks."""
    if ANALYSIS_ID.fullmatch(reference):
        return reference
    key = deployment.keys.find(bearer(request.headers.get("Authorization")))
    return deployment.listing.resolve(key.tenant, reference)


def _analysis_id(request: Request, deployment: CurrentDeployment, analysis_id: Reference) -> str:
    return _resolved(request, deployment, analysis_id)


def _other_id(request: Request, deployment: CurrentDeployment, other_id: Reference) -> str:
    return _resolved(request, deployment, other_id)


def _study_id(
    request: Request,
    deployment: CurrentDeployment,
    study_id: Annotated[str, Path(max_length=200, description=REFERENCE.replace("an_", "st_"))],
) -> str:
    key = deployment.keys.find(bearer(request.headers.get("Authorization")))
    return deployment.study_listing.resolve(key.tenant, study_id)


AnalysisId = Annotated[str, Depends(_analysis_id)]
StudyId = Annotated[str, Depends(_study_id)]
OtherAnalysisId = Annotated[str, Depends(_other_id)]
Reader = Annotated[ApiKey, Depends(_allowed(Scope.READ))]
Submitter = Annotated[ApiKey, Depends(_allowed(Scope.SUBMIT))]
Admin = Annotated[ApiKey, Depends(_allowed(Scope.ADMIN))]
