"""From rates to seconds. The last rates themselves are kept in Redis: tests/e2e/test_planning."""

from __future__ import annotations

from typing import cast

import pytest
import redis

from backends.estimates.rates import REFERENCE_RATES, Rates
from layerdrift.contract.analysis import StageName

EXTRACT, SAE, REPORT = StageName.EXTRACT, StageName.SAE, StageName.REPORT
NO_REDIS = cast(redis.Redis, None)


class Measured(Rates):
    """What jobs have shown so far."""

    def __init__(self, rates: dict[StageName, float]) -> None:
        super().__init__(NO_REDIS)
        self._rates = rates

    def measured(self) -> dict[StageName, float]:
        return self._rates


def times(factor: float, *stages: StageName) -> dict[StageName, float]:
    """Rates that are so many times those of the reference machine."""
    return {stage: REFERENCE_RATES[stage] * factor for stage in stages}


def test_before_the_first_job_the_reference_machine_tells_the_time() -> None:
    work = {stage: 10 * rate for stage, rate in REFERENCE_RATES.items()}
    assert Measured({}).seconds(work) == pytest.approx(dict.fromkeys(StageName, 10.0))


def test_a_stage_takes_what_it_has_taken_here() -> None:
    assert Measured(times(4, EXTRACT)).seconds({EXTRACT: 8 * REFERENCE_RATES[EXTRACT]}) == {EXTRACT: 2.0}


def test_a_stage_that_has_not_run_here_is_as_much_faster_as_the_median_of_the_others() -> None:
    rates = times(2, EXTRACT) | times(4, StageName.COMPARE) | times(100, StageName.CAUSAL)
    assert Measured(rates).seconds({SAE: 8 * REFERENCE_RATES[SAE]}) == {SAE: 2.0}


def test_a_fast_disk_or_network_says_nothing_of_how_fast_models_run() -> None:
    rates = times(1000, StageName.RESOLVE, REPORT)
    assert Measured(rates).seconds({SAE: 8 * REFERENCE_RATES[SAE]}) == {SAE: 8.0}


def test_no_work_takes_no_time() -> None:
    assert Measured({}).seconds({StageName.CAUSAL: 0.0}) == {StageName.CAUSAL: 0.0}
    assert Measured({}).seconds({}) == {}


@pytest.mark.parametrize(("operations", "seconds"), [(0.0, 5.0), (5.0, 0.0), (-1.0, 5.0), (5.0, -1.0)])
def test_a_stage_that_did_nothing_or_took_no_time_leaves_no_rate(operations: float, seconds: float) -> None:
    Rates(NO_REDIS).record(SAE, operations, seconds)  # and does not divide by zero
