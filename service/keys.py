"""API keys from the command line: `python -m service.keys create|list|revoke`. A key is told once, when it is made."""

from __future__ import annotations

import argparse
import sys

from pydantic import ValidationError

from backends.api_keys import KeyStore, new_key
from backends.deployment import Deployment
from backends.settings import Settings
from layerdrift.contract.errors import LayerdriftError
from layerdrift.contract.key import Scope

MIN_SECRET_CHARACTERS = 20


def ensure_admin(store: KeyStore, secret: str) -> None:
    """Makes a key with every scope of a secret that was chosen elsewhere, unless it is known.

    Raises:
        ValueError: it is too short to be safe.
    """
    if len(secret) < MIN_SECRET_CHARACTERS:
        raise ValueError(f"LAYERDRIFT_ADMIN_KEY must have {MIN_SECRET_CHARACTERS} characters or more")
    if not store.knows(secret):
        store.create(new_key(name="LAYERDRIFT_ADMIN_KEY", scopes=list(Scope), requests_per_minute=6_000), secret)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m service.keys", description="API keys of this deployment")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key and print it; it is not told again")
    create.add_argument("--name", default="", help="for people")
    create.add_argument("--tenant", default="default", help="whose analyses it sees (default: default)")
    create.add_argument(
        "--scopes",
        nargs="+",
        default=["read", "submit"],
        choices=[str(scope) for scope in Scope],
        metavar="SCOPE",
        help="read, submit, admin, operator (default: read submit)",
    )
    create.add_argument("--requests-per-minute", type=int, default=600)
    create.add_argument("--open-jobs", type=int, default=100, help="of its tenant, queued or running at once")
    create.add_argument("--priority", type=int, default=5, help="of its jobs, 9 before 0")
    commands.add_parser("list", help="all keys, without what signs in")
    revoke = commands.add_parser("revoke", help="make a key useless")
    revoke.add_argument("id", help="as list tells it")
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    try:
        store = Deployment.connect(Settings()).keys
        if command == "create":
            print(store.create(new_key(**given)))
        elif command == "revoke":
            store.revoke(given["id"])
        else:
            for key in store.all():
                scopes = ",".join(sorted(key.scopes))
                print(key.id, key.tenant, scopes, key.created_at.date(), key.name, sep="\t")
    except ValidationError as error:
        print("; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors()), file=sys.stderr)
        return 1
    except LayerdriftError as error:
        print(error.detail, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
