"""Signing in with an OpenID Connect provider: what its claims allow. Knows no HTTP."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from backends import oidc
from backends.deployment import Deployment
from backends.sessions import Login
from backends.settings import Settings
from layerdrift.contract.errors import ForbiddenError, UnauthorizedError
from layerdrift.contract.key import DEFAULT_TENANT, ApiKey, Scope

EVERYBODY: Final = "*"
"""The role of everybody who is signed in."""

_PAGE = re.compile(r"#[A-Za-z0-9/_.?=&%-]*")


def begin(deployment: Deployment, page: str) -> oidc.Redirect:
    """Sends somebody to the provider; `state` goes into a cookie of their browser.

    Args:
        page: the part of the page's address after and with #, where they come back to.

    Raises:
        UnavailableError: the provider does not answer.
    """
    way = oidc.redirect(deployment.settings)
    back = page if _PAGE.fullmatch(page) else "#/"
    deployment.sessions.begin(way.state, Login(nonce=way.nonce, verifier=way.verifier, page=back))
    return way


def complete(deployment: Deployment, state: str, code: str) -> tuple[ApiKey, str]:
    """As whom somebody acts who comes back from the provider, and the page that they came from.

    Raises:
        UnauthorizedError: it is too late, or the provider vouches for nobody.
        ForbiddenError: their claims give them no role here.
        UnavailableError: the provider does not answer.
    """
    login = deployment.sessions.take(state)
    if login is None:
        raise UnauthorizedError("this sign-in has ended or was used before; sign in again")
    found = oidc.claims(deployment.settings, code, login.verifier, login.nonce)
    return key_of(deployment.settings, found), login.page


def key_of(settings: Settings, claims: Mapping[str, Any]) -> ApiKey:
    """What somebody with these claims may do.

    Raises:
        ForbiddenError: no role of theirs is known here, or they belong to no tenant.
    """
    name = next((str(claims[one]) for one in ("email", "preferred_username", "sub") if claims.get(one)), "")
    held = _values(claims, settings.oidc_roles_claim) | {EVERYBODY}
    scopes = frozenset(Scope(scope) for role in held for scope in settings.oidc_roles.get(role, ()))
    if not scopes:
        raise ForbiddenError(
            f"{name} has no role here; the operator gives roles by the claim {settings.oidc_roles_claim!r} in "
            "LAYERDRIFT_OIDC_ROLES"
        )
    tenants = _values(claims, settings.oidc_tenant_claim) if settings.oidc_tenant_claim else {DEFAULT_TENANT}
    try:
        (tenant,) = tenants
        return ApiKey(
            id=f"session_{secrets.token_hex(4)}", name=name, tenant=tenant, scopes=scopes, created_at=datetime.now(UTC)
        )
    except (ValueError, ValidationError) as error:
        raise ForbiddenError(
            f"{name} belongs to no one tenant: the claim {settings.oidc_tenant_claim!r} has to name one, in lower-case "
            "letters, digits and hyphens"
        ) from error


def _values(claims: Mapping[str, Any], path: str) -> set[str]:
    """The values of a claim, one or many; a path with dots leads into nested ones."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    values = found if isinstance(found, list) else [found]
    return {value for value in values if isinstance(value, str)}
