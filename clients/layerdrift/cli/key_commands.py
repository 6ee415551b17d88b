"""`layerdrift keys`: API keys of the tenant; needs a key with the scope admin, or a service that has none yet."""

from __future__ import annotations

from typing import Annotated

import typer

from layerdrift.cli import tables
from layerdrift.cli.exits import reported
from layerdrift.cli.options import AsJson, Url
from layerdrift.contract.key import KeyRequest, Scope
from layerdrift.sdk import Client

keys_app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)


@keys_app.command()
@reported
def create(
    name: Annotated[str, typer.Option("--name", help="Name of the key, for people.")] = "",
    scope: Annotated[list[Scope], typer.Option("--scope", help="What the key may do; may be repeated.")] = [  # noqa: B006
        Scope.READ,
        Scope.SUBMIT,
    ],
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", min=1, help="Default: 600, or your own limit.")
    ] = None,
    open_jobs: Annotated[
        int | None,
        typer.Option(
            "--open-jobs", min=1, help="Jobs of the tenant, queued or running. Default: 100, or your own limit."
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option("--priority", min=0, max=9, help="Priority of its jobs, 9 first. Default: 5, or your own."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key and print its secret, which is shown only once."""
    limits = {"requests_per_minute": requests_per_minute, "open_jobs": open_jobs, "priority": priority}
    asked = KeyRequest.model_validate(
        {"name": name, "scopes": scope} | {limit: value for limit, value in limits.items() if value is not None}
    )
    with Client(url) as client:
        made = client.create_key(asked)
    if as_json:
        tables.dump(made)
    else:
        tables.put(made.secret)


@keys_app.command("list")
@reported
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """List keys (secrets hidden)."""
    with Client(url) as client:
        found = client.keys()
    if as_json:
        tables.dump([key.model_dump(mode="json") for key in found])
    else:
        tables.say(tables.keys(found))


@keys_app.command()
@reported
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key: key_…")], url: Url = None, as_json: AsJson = False
) -> None:
    """Revoke a key."""
    with Client(url) as client:
        client.revoke_key(key)
    if as_json:
        tables.dump({"id": key, "revoked": True})
