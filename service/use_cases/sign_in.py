"""Signing in with an OpenID Connect provider: authorization code with PKCE. Knows no HTTP routes.

https://openid.net/specs/openid-connect-core-1_0.html, RFC 7636.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import ValidationError

from backends.deployment import Deployment
from backends.sessions import Login
from backends.settings import Settings
from layerdrift.contract.errors import ForbiddenError, UnauthorizedError, UnavailableError
from layerdrift.contract.key import DEFAULT_TENANT, ApiKey, Scope

CALLBACK: Final = "/auth/callback"
ALGORITHMS: Final = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Of signatures of ID tokens: those with a public key. `none` and shared secrets are not among them."""

EVERYBODY: Final = "*"
"""The role of everybody who is signed in."""

LEEWAY_SECONDS, TIMEOUT_SECONDS, DISCOVERED_SECONDS = 60, 10.0, 3600
_PAGE = re.compile(r"#[A-Za-z0-9/_.?=&%-]*")


@dataclass(frozen=True)
class Provider:
    """What a provider tells of itself."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    keys: KeySet


@dataclass(frozen=True)
class Redirect:
    """Where somebody is sent to sign in; `state` goes into a cookie of their browser."""

    url: str
    state: str


def begin(deployment: Deployment, page: str) -> Redirect:
    """Sends somebody to the provider.

    Args:
        page: the part of the page's address after and with #, where they come back to.

    Raises:
        UnavailableError: the provider does not answer.
    """
    provider, verifier, nonce = _provider(deployment.settings), secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    with _client(deployment.settings) as client:
        url, state = client.create_authorization_url(
            provider.authorization_endpoint, code_verifier=verifier, nonce=nonce
        )
    deployment.sessions.begin(
        state, Login(nonce=nonce, verifier=verifier, page=page if _PAGE.fullmatch(page) else "#/")
    )
    return Redirect(url, state)


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
    settings, provider = deployment.settings, _provider(deployment.settings)
    try:
        with _client(settings) as client:
            answer = client.fetch_token(provider.token_endpoint, code=code, code_verifier=login.verifier)
        claims = _claims(str(answer.get("id_token", "")), settings, login.nonce)
    except AuthlibBaseError as error:
        raise UnauthorizedError(f"the provider refused the sign-in: {error.description or error.error}") from error
    except httpx.HTTPError as error:
        raise UnavailableError(f"the sign-in provider could not be reached: {error}") from error
    return key_of(settings, claims), login.page


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


def _claims(token: str, settings: Settings, nonce: str) -> dict[str, Any]:
    """The claims of an ID token; where they do not hold, the provider is asked for its keys again: they change."""
    try:
        return claims_of(token, _provider(settings), settings, nonce)
    except UnauthorizedError:
        _discovered.cache_clear()
        return claims_of(token, _provider(settings), settings, nonce)


def claims_of(token: str, provider: Provider, settings: Settings, nonce: str) -> dict[str, Any]:
    """The claims of an ID token that this provider made for us, now, and for this sign-in; UnauthorizedError else."""
    registry = jwt.JWTClaimsRegistry(
        leeway=LEEWAY_SECONDS,
        iss={"essential": True, "value": provider.issuer},
        aud={"essential": True, "value": str(settings.oidc_client_id)},
        exp={"essential": True},
        sub={"essential": True},
        nonce={"essential": True, "value": nonce},
    )
    try:
        claims = jwt.decode(token, provider.keys, algorithms=ALGORITHMS).claims
        registry.validate(claims)
    except (JoseError, ValueError) as error:
        raise UnauthorizedError(f"the provider's ID token is not valid: {error}") from error
    several = isinstance(claims.get("aud"), list) and len(claims["aud"]) > 1
    if several and claims.get("azp") != settings.oidc_client_id:
        raise UnauthorizedError("the provider's ID token is not valid: it was made for another client")
    return dict(claims)


def _client(settings: Settings) -> OAuth2Client:
    secret = settings.oidc_client_secret.get_secret_value() if settings.oidc_client_secret else None
    return OAuth2Client(
        client_id=settings.oidc_client_id,
        client_secret=secret,
        token_endpoint_auth_method="client_secret_basic" if secret else "none",
        scope=settings.oidc_scopes,
        redirect_uri=f"{settings.public_url}{CALLBACK}",
        code_challenge_method="S256",
        timeout=TIMEOUT_SECONDS,
    )


def _provider(settings: Settings) -> Provider:
    return _discovered(str(settings.oidc_issuer).rstrip("/"), int(time.time() // DISCOVERED_SECONDS))


@lru_cache(maxsize=2)
def _discovered(issuer: str, _hour: int) -> Provider:
    """What a provider says at its well-known address; asked once an hour. UnavailableError where it does not answer."""
    try:
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            told = client.get(f"{issuer}/.well-known/openid-configuration").raise_for_status().json()
            keys = client.get(told["jwks_uri"]).raise_for_status().json()
        if str(told["issuer"]).rstrip("/") != issuer:
            raise UnavailableError(f"the sign-in provider at {issuer} calls itself {told['issuer']}")
        for name in ("authorization_endpoint", "token_endpoint"):
            if urlsplit(told[name]).scheme not in ("https", "http"):
                raise UnavailableError(f"the sign-in provider's {name} is no address: {told[name]}")
        return Provider(
            told["issuer"], told["authorization_endpoint"], told["token_endpoint"], KeySet.import_key_set(keys)
        )
    except (httpx.HTTPError, KeyError, ValueError, TypeError) as error:
        raise UnavailableError(f"the sign-in provider at {issuer} could not be asked: {error}") from error
