"""Policies and comparisons, evaluated in a process of their own.

Reading a long report holds the interpreter for as long as it takes; here that would hold up every other request.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from anyio import BrokenWorkerProcess, CapacityLimiter, to_process

from layerdrift.contract.comparison import compare
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.plain import STORED
from layerdrift.contract.policy import Policy
from layerdrift.contract.report import Report
from layerdrift.contract.study_policy import StudyPolicy
from layerdrift.contract.study_report import StudyReport
from layerdrift.gate import evaluate_policy, evaluate_study_policy

NICENESS = 10
"""The event loop goes first where both want a core."""

_ONE_AT_A_TIME = CapacityLimiter(1)


async def start() -> None:
    """Starts the process, which imports for some seconds, so that the first policy need not wait for it."""
    with suppress(UnavailableError):
        await _beside(bytes)


async def verdict(policy: Policy, report: bytes, baseline: bytes | None) -> bytes:
    """The Verdict on a report, as JSON.

    Raises:
        InputError: a rule cannot be judged on this report.
        UnavailableError: the process died.
    """
    return await _beside(_verdict, policy, report, baseline)


async def comparison(one: bytes, other: bytes) -> bytes:
    """The Comparison of two reports, as JSON; raises like verdict."""
    return await _beside(_comparison, one, other)


async def study_verdict(policy: StudyPolicy, report: bytes) -> bytes:
    """The StudyVerdict on the report of a study, as JSON; raises like verdict."""
    return await _beside(_study_verdict, policy, report)


async def _beside(function: Callable[..., bytes], *given: object) -> bytes:
    try:
        return await to_process.run_sync(_yielding, function, *given, limiter=_ONE_AT_A_TIME)
    except BrokenWorkerProcess as error:
        raise UnavailableError("the process that evaluates reports died; try again") from error


def _yielding(function: Callable[..., bytes], *given: object) -> bytes:
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    return function(*given)


def _verdict(policy: Policy, report: bytes, baseline: bytes | None) -> bytes:
    return (
        evaluate_policy(policy, _read(report), None if baseline is None else _read(baseline)).model_dump_json().encode()
    )


def _study_verdict(policy: StudyPolicy, report: bytes) -> bytes:
    read = StudyReport.model_validate_json(report, context=STORED)
    return evaluate_study_policy(policy, read).model_dump_json().encode()


def _comparison(one: bytes, other: bytes) -> bytes:
    return compare(_read(one), _read(other)).model_dump_json().encode()


def _read(report: bytes) -> Report:
    return Report.model_validate_json(report, context=STORED)
