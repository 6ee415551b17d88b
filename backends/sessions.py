"""People who are signed in, and those who are on their way to their provider and back; in Redis alone."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict

from backends.storage import key_names
from layerdrift.contract.key import ApiKey
from layerdrift.contract.plain import STORED

LOGIN_SECONDS = 600
"""How long somebody may take at the provider."""


class Login(BaseModel):
    """What is kept while somebody signs in. page: where they come back to, with its #."""

    model_config = ConfigDict(frozen=True)

    nonce: str
    verifier: str
    page: str


class SessionStore:
    """The sessions of one deployment. A session acts as an API key with what its claims allow; it ends by itself."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def begin(self, state: str, login: Login) -> None:
        """Keeps what the way back will ask for."""
        self._redis.set(key_names.login(_digest(state)), login.model_dump_json(), ex=LOGIN_SECONDS)

    def take(self, state: str) -> Login | None:
        """What was kept, once; None where it is too late, or somebody came back before."""
        found: Any = self._redis.getdel(key_names.login(_digest(state)))
        return None if found is None else Login.model_validate_json(found)

    def create(self, key: ApiKey, seconds: int) -> str:
        """Signs somebody in for so long; the token is told to their browser alone."""
        token = secrets.token_urlsafe(32)
        self._redis.set(key_names.session(_digest(token)), key.model_dump_json(), ex=seconds)
        return token

    def find(self, token: str) -> ApiKey | None:
        """As whom somebody acts; None where the session has ended."""
        found: Any = self._redis.get(key_names.session(_digest(token)))
        return None if found is None else ApiKey.model_validate_json(found, context=STORED)

    def end(self, token: str) -> None:
        """Signs somebody out."""
        self._redis.delete(key_names.session(_digest(token)))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
