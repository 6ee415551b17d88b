"""Who asks, and what they may: API keys as FastAPI dependencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from layerdrift.backends.access import bearer, require
from layerdrift.backends.deployment import Deployment
from layerdrift.contract.key import ApiKey, Scope

_SCHEME = HTTPBearer(auto_error=False, description="an API key; without any key made, none is asked for")


def _deployment(request: Request) -> Deployment:
    deployment: Deployment = request.app.state.deployment
    return deployment


Backends = Annotated[Deployment, Depends(_deployment)]
AnalysisId = Annotated[str, Path(pattern=r"^an_[a-z2-7]{26}$", description="id of an analysis")]


def _allowed(scope: Scope) -> Callable[..., ApiKey]:
    """A dependency: the key of a request that may do this. 401, 403 or 429 else."""

    def check(request: Request, backends: Backends, _: Annotated[object, Depends(_SCHEME)]) -> ApiKey:
        key = backends.keys.find(bearer(request.headers.get("Authorization")))
        require(key, scope)
        backends.keys.count_request(key)
        return key

    return check


Reader = Annotated[ApiKey, Depends(_allowed(Scope.READ))]
Submitter = Annotated[ApiKey, Depends(_allowed(Scope.SUBMIT))]
Admin = Annotated[ApiKey, Depends(_allowed(Scope.ADMIN))]
