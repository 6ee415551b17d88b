"""Signing in and out of the page, where the operator has named a provider."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Cookie, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, Field

from backends.sessions import LOGIN_SECONDS
from layerdrift.contract.errors import NotFoundError, UnauthorizedError
from layerdrift.contract.key import Scope
from service.http import audit
from service.http.access import SESSION_COOKIE, CurrentDeployment
from service.use_cases import sign_in

LOGIN_COOKIE = "layerdrift_login"
_SHORT = Query(max_length=2048)

router = APIRouter(prefix="/auth", include_in_schema=False)


class Session(BaseModel):
    """Whether somebody can sign in with a provider here, and who is signed in."""

    provider: bool
    signed_in: bool = False
    name: str = ""
    tenant: str = ""
    scopes: list[Scope] = Field(default=[])


@router.get("/session")
def session(
    deployment: CurrentDeployment, token: Annotated[str | None, Cookie(alias=SESSION_COOKIE)] = None
) -> Session:
    """Who is signed in."""
    if deployment.settings.oidc_issuer is None:
        return Session(provider=False)
    found = deployment.sessions.find(token) if token else None
    if found is None:
        return Session(provider=True)
    return Session(provider=True, signed_in=True, name=found.name, tenant=found.tenant, scopes=sorted(found.scopes))


@router.get("/login")
def login(deployment: CurrentDeployment, page: Annotated[str, _SHORT] = "#/") -> Response:
    """Send the browser to the provider."""
    _require_provider(deployment)
    redirect = sign_in.begin(deployment, page)
    answer = RedirectResponse(redirect.url, status_code=303)
    _set_cookie(answer, deployment, LOGIN_COOKIE, redirect.state, LOGIN_SECONDS)
    return answer


@router.get("/callback")
def callback(
    request: Request,
    deployment: CurrentDeployment,
    state: Annotated[str, _SHORT] = "",
    code: Annotated[str, _SHORT] = "",
    error: Annotated[str, _SHORT] = "",
    error_description: Annotated[str, _SHORT] = "",
) -> Response:
    """Take the browser back from the provider."""
    _require_provider(deployment)
    if not state or request.cookies.get(LOGIN_COOKIE) != state:
        raise UnauthorizedError("this sign-in was not begun in this browser; sign in again")
    if error:
        raise UnauthorizedError(f"the provider refused the sign-in: {error_description or error}")
    key, page = sign_in.complete(deployment, state, code)
    setattr(request.state, audit.KEY, key)
    seconds = deployment.settings.session_seconds
    answer = RedirectResponse(f"/{page}", status_code=303)
    _set_cookie(answer, deployment, SESSION_COOKIE, deployment.sessions.create(key, seconds), seconds)
    answer.delete_cookie(LOGIN_COOKIE)
    return answer


@router.post("/logout", status_code=204)
def logout(
    request: Request, deployment: CurrentDeployment, token: Annotated[str | None, Cookie(alias=SESSION_COOKIE)] = None
) -> Response:
    """Sign out of this service; the provider's own session goes on."""
    if token:
        setattr(request.state, audit.KEY, deployment.sessions.find(token))
        deployment.sessions.end(token)
    answer = Response(status_code=204)
    answer.delete_cookie(SESSION_COOKIE)
    return answer


def _require_provider(deployment: CurrentDeployment) -> None:
    if deployment.settings.oidc_issuer is None:
        raise NotFoundError("this service has no sign-in provider; use an API key")


def _set_cookie(answer: Response, deployment: CurrentDeployment, name: str, value: str, seconds: int) -> None:
    """One that no script reads, and that no other site's form or image brings."""
    secure = str(deployment.settings.public_url).startswith("https:")
    same_site: Literal["lax"] = "lax"  # strict ones would not come back from the provider
    answer.set_cookie(name, value, max_age=seconds, httponly=True, secure=secure, samesite=same_site)
