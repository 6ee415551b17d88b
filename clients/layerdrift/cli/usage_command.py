"""`layerdrift usage`: what the tenant has used this month, beside its quota."""

from __future__ import annotations

from typing import Annotated

import typer

from layerdrift.cli import tables
from layerdrift.cli.exits import reported
from layerdrift.cli.options import AsJson, Url
from layerdrift.sdk import Client


@reported
def usage(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Another tenant; needs the scope operator.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show what the tenant has used this month, and its quota."""
    with Client(url) as client:
        found = client.usage(tenant)
    if as_json:
        tables.dump(found)
    else:
        tables.say(f"Tenant {found.tenant}, {found.month} (UTC)", tables.usage(found))
