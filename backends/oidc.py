"""An OpenID Connect provider as its client sees it: authorization code with PKCE.

https://openid.net/specs/openid-connect-core-1_0.html, RFC 7636.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from backends.settings import Settings
from layerdrift.contract.errors import UnauthorizedError, UnavailableError

CALLBACK: Final = "/auth/callback"
ALGORITHMS: Final = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Of signatures of ID tokens: those with a public key. `none` and shared secrets are not among them."""

LEEWAY_SECONDS, TIMEOUT_SECONDS, DISCOVERED_SECONDS = 60, 10.0, 3600


@dataclass(frozen=True)
class Provider:
    """What a provider tells of itself."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    keys: KeySet


@dataclass(frozen=True)
class Redirect:
    """Where somebody is sent to sign in; what is kept until they are back."""

    url: str
    state: str
    nonce: str
    verifier: str


def redirect(settings: Settings) -> Redirect:
    """A way to the provider. UnavailableError: it does not answer."""
    provider, verifier, nonce = _provider(settings), secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    with _client(settings) as client:
        url, state = client.create_authorization_url(
            provider.authorization_endpoint, code_verifier=verifier, nonce=nonce
        )
    return Redirect(url, state, nonce, verifier)


def claims(settings: Settings, code: str, verifier: str, nonce: str) -> dict[str, Any]:
    """The claims of whoever the provider gave a code.

    Raises:
        UnauthorizedError: it vouches for nobody.
        UnavailableError: it does not answer.
    """
    try:
        with _client(settings) as client:
            answer = client.fetch_token(_provider(settings).token_endpoint, code=code, code_verifier=verifier)
        return _claims(str(answer.get("id_token", "")), settings, nonce)
    except AuthlibBaseError as error:
        raise UnauthorizedError(f"the provider refused the sign-in: {error.description or error.error}") from error
    except httpx.HTTPError as error:
        raise UnavailableError(f"the sign-in provider could not be reached: {error}") from error


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
