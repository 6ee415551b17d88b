"""Exit codes, and which errors they stand for."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console

from layerdrift.contract.errors import InputError, LayerdriftError
from layerdrift.contract.explained import explain
from layerdrift.contract.policy import Decision
from layerdrift.render.escaping import lines

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Code(IntEnum):
    """What a script can tell from a run."""

    PASS = 0  # done; a gate that passed or warned
    GATE = 1  # the gate failed
    USAGE = 2  # what was given cannot be used: options, files, a policy, a request
    SERVICE = 3  # the service, or the job, failed
    TIMEOUT = 4  # it did not end in time
    INTERRUPTED = 130  # Ctrl-C


def of(decision: Decision) -> Code:
    """Of a verdict: a warning is no failure."""
    return Code.GATE if decision == "fail" else Code.PASS


def reported(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """A command whose errors are said in a line or two and become exit codes; with `--json` as a problem document."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        as_json = bool(kwargs.get("as_json"))
        try:
            return command(*args, **kwargs)
        except LayerdriftError as error:
            _say(error, as_json)
            raise typer.Exit(Code.USAGE if isinstance(error, InputError) else Code.SERVICE) from error
        except TimeoutError as error:
            _say(LayerdriftError(str(error)), as_json)
            raise typer.Exit(Code.TIMEOUT) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("interrupted", highlight=False)
            raise typer.Exit(Code.INTERRUPTED) from error
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            said = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
            _say(InputError(said), as_json)
            raise typer.Exit(Code.USAGE) from error
        except UnicodeDecodeError as error:
            _say(InputError(str(error)), as_json)
            raise typer.Exit(Code.USAGE) from error
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {explain(one)}" for one in error.errors())
            _say(InputError(said), as_json)
            raise typer.Exit(Code.USAGE) from error
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as error:  # Python's own code for it is 1, which says that a gate failed
            traceback.print_exc()
            raise typer.Exit(Code.SERVICE) from error

    return run


def _say(error: LayerdriftError, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps(error.problem().model_dump(mode="json", exclude_none=True)) + "\n")
        return
    said = [error.detail]
    if isinstance(error, InputError) and len(error.errors) > 1:
        said = list(dict.fromkeys(one.detail for one in error.errors))
    console = Console(stderr=True, soft_wrap=True)
    for line in said:
        console.print("error: ", style="bold red", end="")
        console.print(lines(line), highlight=False, markup=False)
