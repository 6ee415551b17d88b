"""Who asks, and what they may: API keys as FastAPI dependencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from backends.api_keys import ANYBODY, bearer, require
from backends.deployment import Deployment
from backends.jobs.listing import ANALYSIS_ID
from layerdrift.contract.errors import ForbiddenError, UnauthorizedError
from layerdrift.contract.key import ApiKey, Scope
from service.http import audit

_SCHEME = HTTPBearer(auto_error=False, description="an API key; not required until the first one is created")


SESSION_COOKIE: Final = "layerdrift_session"
_SAFE = ("GET", "HEAD")


def _asking(request: Request, deployment: Deployment) -> ApiKey:
    """Whose request it is: that of an API key, or else of somebody who is signed in to the page.

    Raises:
        UnauthorizedError: it is nobody's.
        ForbiddenError: a page elsewhere may have sent it.
    """
    secret, token = bearer(request.headers.get("Authorization")), request.cookies.get(SESSION_COOKIE)
    people = deployment.settings.oidc_issuer is not None
    if secret is None and people and token:
        found = deployment.sessions.find(token)
        if found is not None:
            if request.method not in _SAFE and "origin" not in request.headers:
                raise ForbiddenError("a request by cookie that changes something has to name its Origin")
            return found
    key = deployment.keys.find(secret)
    if key is ANYBODY and people:
        raise UnauthorizedError("sign in, or send Authorization: Bearer <key>")
    return key


def _deployment(request: Request) -> Deployment:
    deployment: Deployment = request.app.state.deployment
    return deployment


CurrentDeployment = Annotated[Deployment, Depends(_deployment)]
REFERENCE: Final = "an id (an_…), the first characters of one, a name, or `latest`"

Reference = Annotated[str, Path(max_length=200, description=REFERENCE)]


def _allowed(scope: Scope) -> Callable[..., ApiKey]:
    """A dependency: the key of a request that may do this. 401, 403 or 429 else."""

    def check(request: Request, deployment: CurrentDeployment, _: Annotated[object, Depends(_SCHEME)]) -> ApiKey:
        key = _asking(request, deployment)
        setattr(request.state, audit.KEY, key)
        require(key, scope)
        deployment.keys.count_request(key)
        return key

    return check


def _resolved(request: Request, deployment: CurrentDeployment, reference: str) -> str:
    """The id that a reference stands for, among the analyses of whoever asks."""
    if ANALYSIS_ID.fullmatch(reference):
        return reference
    key = _asking(request, deployment)
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
    key = _asking(request, deployment)
    return deployment.study_listing.resolve(key.tenant, study_id)


AnalysisId = Annotated[str, Depends(_analysis_id)]
StudyId = Annotated[str, Depends(_study_id)]
OtherAnalysisId = Annotated[str, Depends(_other_id)]
Reader = Annotated[ApiKey, Depends(_allowed(Scope.READ))]
Submitter = Annotated[ApiKey, Depends(_allowed(Scope.SUBMIT))]
Admin = Annotated[ApiKey, Depends(_allowed(Scope.ADMIN))]
