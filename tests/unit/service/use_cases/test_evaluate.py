"""The process that judges: its errors arrive, its death is an error that says so, and the next question is answered."""

from __future__ import annotations

import json
import os
from typing import NoReturn

import anyio
import pytest
from pydantic import ValidationError

from layerdrift.contract.errors import InputError, UnavailableError
from layerdrift.contract.policy import Policy
from service.use_cases import evaluate
from tests.builders import reports

POLICY = Policy.model_validate({"rules": [{"id": "r", "message": "too much", "path": "layers[*].drift", "max": 1}]})


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


def stored(**changes: object) -> bytes:
    return reports.report(**changes).model_dump_json().encode()  # type: ignore[arg-type]


@pytest.mark.parametrize(("most", "decision"), [(1.0, "pass"), (0.5, "fail")])
def test_a_verdict_is_of_the_report_as_it_is_stored(most: float, decision: str) -> None:
    rule = POLICY.rules[0].model_copy(update={"max": most})
    policy = POLICY.model_copy(update={"rules": [rule]})
    assert json.loads(evaluate._verdict(policy, stored(), None))["decision"] == decision


def test_a_name_that_would_be_refused_today_spoils_no_stored_report() -> None:
    report = json.loads(stored())
    report["request"]["name"] = "of\nbefore"
    assert json.loads(evaluate._verdict(POLICY, json.dumps(report).encode(), None))["decision"] == "pass"


def test_a_baseline_is_read_where_there_is_one() -> None:
    with pytest.raises(ValidationError):
        evaluate._verdict(POLICY, stored(), b"{}")


def test_a_comparison_is_the_second_minus_the_first() -> None:
    one, other = stored(), stored(intervals=False, analysis_id="an_" + "b" * 26)
    compared = json.loads(evaluate._comparison(one, other))
    assert (compared["one"], compared["other"]) == ("an_" + "a" * 26, "an_" + "b" * 26)


def test_reports_of_other_depths_cannot_be_compared() -> None:
    with pytest.raises(InputError, match=r"4 layers and .* 5"):
        evaluate._comparison(stored(layers=4), stored(layers=5))
