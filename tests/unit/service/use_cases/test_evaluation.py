"""The process that judges: its errors arrive, its death is an error that says so, and the next question is answered."""

from __future__ import annotations

import os
from typing import NoReturn

import anyio
import pytest

from layerdrift.contract.errors import InputError, UnavailableError
from service.use_cases import evaluate


def priority() -> bytes:
    return str(os.getpriority(os.PRIO_PROCESS, 0)).encode()


def process() -> bytes:
    return str(os.getpid()).encode()


def refuse() -> NoReturn:
    raise InputError.at("/rules/0/path", "not in this report")


def die() -> NoReturn:
    os._exit(1)


def test_it_is_a_process_of_its_own_that_lets_others_go_first() -> None:
    async def asked() -> None:
        assert int(await evaluate._beside(priority)) == evaluate.NICENESS
        first = int(await evaluate._beside(process))
        assert first != os.getpid()
        assert int(await evaluate._beside(process)) == first  # started once

    anyio.run(asked)


def test_its_errors_arrive_whole() -> None:
    with pytest.raises(InputError, match="not in this report") as found:
        anyio.run(evaluate._beside, refuse)
    assert [one.pointer for one in found.value.errors] == ["/rules/0/path"]


def test_its_death_is_said_and_the_next_question_answered() -> None:
    async def asked() -> None:
        with pytest.raises(UnavailableError, match="died"):
            await evaluate._beside(die)
        assert int(await evaluate._beside(process)) != os.getpid()

    anyio.run(asked)
