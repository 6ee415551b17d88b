"""`layerdrift policy`: writing policies."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from layerdrift import policies
from layerdrift.cli import tables
from layerdrift.cli.exits import reported
from layerdrift.cli.options import AsJson
from layerdrift.contract.policy import Policy


class Kind(StrEnum):
    """Whom a starter policy is for."""

    CLASSIFIER = "classifier"
    LANGUAGE = "language"


policy_app = typer.Typer(help="Write and check policies.", no_args_is_help=True, rich_markup_mode=None)


@policy_app.command()
@reported
def check(
    file: Annotated[Path, typer.Argument(help="A policy, YAML or JSON.")],
    as_json: AsJson = False,
) -> None:
    """Check a policy file without a service. Each error comes with its line."""
    policy = policies.load(file.read_text(encoding="utf-8"), str(file))
    if as_json:
        tables.dump(policy)
    else:
        rules = f"{len(policy.rules)} rule{'s' if len(policy.rules) != 1 else ''}"
        needs = "; needs a baseline" if policy.needs_baseline else ""
        tables.put(f"{file}: {rules}, no errors{needs}")


@policy_app.command()
@reported
def starter(
    kind: Annotated[
        Kind, typer.Option("--for", help="The models that it is for: classifiers and encoders, or language models.")
    ] = Kind.CLASSIFIER,
) -> None:
    """Print a starter policy, with comments."""
    tables.put(policies.starter(kind.value))


@policy_app.command()
@reported
def schema() -> None:
    """Print the JSON schema of policies, for editors."""
    tables.put(json.dumps(Policy.model_json_schema(), indent=1))
