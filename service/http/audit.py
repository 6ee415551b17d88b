"""The audit log: who signed in, submitted, read, deleted or changed keys; a line a request, on its own logger."""

from __future__ import annotations

import logging
from typing import Final

from starlette.types import Scope

from backends.observability.logs import bound
from layerdrift.contract.key import ApiKey

KEY: Final = "api_key"
"""Where a request's state says whose it is."""

_PREFIXES = ("/v1/", "/auth/")
_UNCHANGING = ("/v1/estimates", "/v1/datasets/preview")
"""POSTs that change nothing and read nothing that is kept."""

_READ = ("/callback", "/report", "/artifacts", "/compare", "/sources", "/usage", "/keys")
"""Parts of a route that sign in, or tell what is in an analysis or who is there; polling is not among them."""

_REFUSED = (401, 403)

logger = logging.getLogger("layerdrift.audit")


def audit(scope: Scope, route: str, status: int, location: str | None) -> None:
    """Writes a line where a request did something that somebody may have to answer for, or was kept from it.

    Args:
        route: its template. location: what it made, by the answer's header.
    """
    if not route.startswith(_PREFIXES) or not (_audited(scope["method"], route) or status in _REFUSED):
        return
    key: ApiKey | None = scope.get("state", {}).get(KEY)
    client = scope.get("client")
    with bound(
        action=f"{scope['method']} {route}",
        object=location or scope["path"],
        status=status,
        tenant=key.tenant if key else None,
        key=key.id if key else None,
        key_name=key.name if key else None,
        client=client[0] if client else None,
    ):
        logger.info("audit")


def _audited(method: str, route: str) -> bool:
    if method in ("GET", "HEAD"):
        return any(part in route for part in _READ)
    return route not in _UNCHANGING
