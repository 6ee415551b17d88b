"""Dataclasses of options, as typer and a person at a terminal see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from layerdrift.cli.grouped import grouped
from layerdrift.cli.main import app


@dataclass(frozen=True)
class Places:
    source: Annotated[str | None, typer.Option("--from")] = None
    tag: Annotated[list[str], typer.Option("--tag")] = field(default_factory=list)


def command() -> tuple[typer.Typer, list[object]]:
    made, seen = typer.Typer(), list[object]()

    @made.command()
    @grouped
    def run(name: Annotated[str, typer.Argument()], places: Places, loud: bool = False) -> None:
        seen.extend((name, places, loud))

    return made, seen


def test_options_arrive_as_the_object_that_the_command_takes() -> None:
    made, seen = command()
    assert CliRunner().invoke(made, ["x", "--from", "here", "--tag", "a", "--tag", "b", "--loud"]).exit_code == 0
    assert seen == ["x", Places("here", ["a", "b"]), True]


def test_what_is_not_given_has_its_default_and_no_list_is_shared() -> None:
    made, seen = command()
    for _ in range(2):
        assert CliRunner().invoke(made, ["x"]).exit_code == 0
    first, second = (one for one in seen if isinstance(one, Places))
    assert first == second == Places()
    assert first.tag is not second.tag


@pytest.mark.parametrize("name", ["submit", "estimate", "review"])
def test_commands_that_make_a_request_take_the_same_options(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"]).output
    for option in ("--base", "--tuned", "--dataset", "--finetune", "--request", "--tag", "--seed", "--no-sae", "--set"):
        assert option in shown
