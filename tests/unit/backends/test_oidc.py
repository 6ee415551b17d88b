"""What a provider's ID token has to be: each thing that can be wrong with it."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from backends.oidc import Provider, claims_of
from backends.settings import Settings
from layerdrift.contract.errors import UnauthorizedError

ISSUER = "https://id.example"
KEY = RSAKey.generate_key(2048, {"kid": "1"}, private=True)
PROVIDER = Provider(ISSUER, f"{ISSUER}/authorize", f"{ISSUER}/token", KeySet([KEY]))
SETTINGS = Settings(
    public_url="https://layerdrift.example",
    oidc_issuer=ISSUER,
    oidc_client_id="layerdrift",
    oidc_roles={"reviewers": ["read", "submit"], "admins": ["admin"]},
)


def token(key: Any = KEY, algorithm: str = "RS256", **changes: Any) -> str:
    given = {"iss": ISSUER, "aud": "layerdrift", "sub": "u1", "exp": int(time.time()) + 300, "nonce": "n"} | changes
    claims = {name: value for name, value in given.items() if value is not None}
    return str(jwt.encode({"alg": algorithm, "kid": "1"}, claims, key, algorithms=[algorithm]))


def encoded(header: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")


@pytest.mark.parametrize("aud", ["layerdrift", ["layerdrift"]])
def test_a_token_that_was_made_for_this_sign_in_is_read(aud: Any) -> None:
    assert claims_of(token(aud=aud, email="a@b.example"), PROVIDER, SETTINGS, "n")["email"] == "a@b.example"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": None},
        {"aud": ["layerdrift", "another"], "azp": "another"},
        {"aud": ["layerdrift", "another"]},
        {"exp": 1_700_000_000},
        {"exp": None},
        {"nonce": "of another sign-in"},
        {"nonce": None},
        {"sub": None},
    ],
    ids=str,
)
def test_a_token_of_another_place_time_or_sign_in_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnauthorizedError, match="not valid"):
        claims_of(token(**changes), PROVIDER, SETTINGS, "n")


def test_a_token_that_somebody_else_signed_is_refused() -> None:
    others = RSAKey.generate_key(2048, {"kid": "1"}, private=True)
    payload = token().split(".")[1]
    unsigned = f"{encoded({'alg': 'none'})}.{payload}."
    head = f"{encoded({'alg': 'HS256', 'kid': '1'})}.{payload}"
    digest = hmac.new(KEY.as_pem(private=False), head.encode(), "sha256").digest()  # by what everybody knows
    by_public_key = f"{head}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
    for forged in (token(others), by_public_key, unsigned, "", "no.token.at-all"):
        with pytest.raises(UnauthorizedError, match="not valid"):
            claims_of(forged, PROVIDER, SETTINGS, "n")
