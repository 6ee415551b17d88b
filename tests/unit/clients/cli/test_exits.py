from __future__ import annotations

import json

import pytest
import typer

from layerdrift.cli.exits import Code, of, reported
from layerdrift.contract.errors import FieldProblem, InputError, LayerdriftError, UnavailableError


def code_of(error: BaseException, **options: bool) -> int:
    @reported
    def command(**_: bool) -> None:
        raise error

    with pytest.raises(typer.Exit) as raised:
        command(**options)
    return raised.value.exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), Code.USAGE),
        (UnavailableError("x"), Code.SERVICE),
        (LayerdriftError("x"), Code.SERVICE),
        (TimeoutError("x"), Code.TIMEOUT),
        (KeyboardInterrupt(), Code.INTERRUPTED),
        (FileNotFoundError(2, "No such file", "a.yaml"), Code.USAGE),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), Code.USAGE),
        (ZeroDivisionError("a bug"), Code.SERVICE),
    ],
)
def test_every_error_has_its_exit_code_and_none_is_that_of_a_failed_policy(error: BaseException, code: Code) -> None:
    assert code_of(error) == code != Code.GATE


def test_only_a_failed_policy_ends_with_1() -> None:
    assert (of("pass"), of("warn"), of("fail")) == (Code.PASS, Code.PASS, Code.GATE)


def test_each_field_that_is_wrong_has_its_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [FieldProblem(pointer="/a", detail="a is missing"), FieldProblem(pointer="/b", detail="b is missing")]
    code_of(InputError("two problems", [*problems, problems[0]]))
    assert capsys.readouterr().err.splitlines() == ["error: a is missing", "error: b is missing"]


def test_a_script_gets_a_problem_document(capsys: pytest.CaptureFixture[str]) -> None:
    code_of(InputError("no such column"), as_json=True)
    assert json.loads(capsys.readouterr().err)["detail"] == "no such column"


def test_a_name_with_control_characters_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    code_of(InputError("\x1b[2J gone"))
    assert "\x1b" not in capsys.readouterr().err


def test_exits_of_a_command_pass_as_they_are() -> None:
    assert code_of(typer.Exit(7)) == 7
