"""API keys over HTTP: an admin key makes, lists and revokes those of its own tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from backends.api_keys import key_of_tenant
from layerdrift.contract.key import KeyList, KeyRequest, NewKey
from service.http.access import Admin, CurrentDeployment
from service.http.problems import documented

KeyId = Annotated[str, Path(pattern=r"^key_[0-9a-f]{8}$", description="key id")]

router = APIRouter(tags=["keys"])


@router.post(
    "/v1/keys", summary="Create a key", status_code=201, responses=documented(400, 401, 403, 413, 415, 422, 429, 503)
)
def create_key(deployment: CurrentDeployment, key: Admin, body: KeyRequest) -> NewKey:
    """Create a key within the limits of the calling key. Once the first key exists, every request needs one."""
    made = key_of_tenant(key, body)
    return NewKey(**made.model_dump(), secret=deployment.keys.create(made, maker=key))


@router.get("/v1/keys", summary="List keys", responses=documented(401, 403, 422, 429, 503))
def list_keys(deployment: CurrentDeployment, key: Admin) -> KeyList:
    """List the tenant's keys, oldest first (secrets hidden)."""
    return KeyList(items=[found for found in deployment.keys.all() if found.tenant == key.tenant])


@router.delete(
    "/v1/keys/{key_id}",
    summary="Revoke a key",
    status_code=204,
    responses=documented(401, 403, 404, 409, 422, 429, 503),
)
def revoke_key(deployment: CurrentDeployment, key: Admin, key_id: KeyId) -> None:
    """Revoke a key. Revoking the last one makes keys optional again: allowed only on loopback, otherwise 409."""
    deployment.keys.revoke(key_id, key)
