"""API keys over HTTP: an admin key makes, lists and revokes those of its own tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from layerdrift.backends.access import key_of_tenant
from layerdrift.contract.key import KeyList, KeyRequest, NewKey
from service.problems import documented
from service.security import Admin, Backends

KeyId = Annotated[str, Path(pattern=r"^key_[0-9a-f]{8}$", description="id of a key")]

router = APIRouter(tags=["keys"])


@router.post("/v1/keys", status_code=201, responses=documented(401, 403, 422, 429, 503))
def create_key(backends: Backends, key: Admin, body: KeyRequest) -> NewKey:
    """Makes a key within the limits of the one that asks. The first one locks the service: every request needs one."""
    made = key_of_tenant(key, body)
    return NewKey(**made.model_dump(), secret=backends.keys.create(made, maker=key))


@router.get("/v1/keys", responses=documented(401, 403, 422, 429, 503))
def list_keys(backends: Backends, key: Admin) -> KeyList:
    """The tenant's keys, oldest first, without their secrets."""
    return KeyList(items=[found for found in backends.keys.all() if found.tenant == key.tenant])


@router.delete("/v1/keys/{key_id}", status_code=204, responses=documented(401, 403, 404, 409, 422, 429, 503))
def revoke_key(backends: Backends, key: Admin, key_id: KeyId) -> None:
    """Makes a key useless. Once the last one is gone, the service asks for none again: on loopback alone, else 409."""
    backends.keys.revoke(key_id, key)
