"""Query parameters that a route does not know are refused: a filter that is misspelt would filter nothing."""

from __future__ import annotations

from typing import Final

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from layerdrift.contract.errors import InputError
from layerdrift.contract.explained import nearest


def _only_known(request: Request) -> None:
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    known = [field.alias for field in route.dependant.query_params]
    for name in request.query_params:
        if name not in known:
            possible = f"; possible: {', '.join(known)}" if known else ""
            raise InputError(f"there is no query parameter {name!r}{nearest(name, known) or possible}")


ONLY_KNOWN_PARAMETERS: Final = [Depends(_only_known)]
"""Dependencies of every route of the API."""
