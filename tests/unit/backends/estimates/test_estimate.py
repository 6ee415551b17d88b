from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from backends.estimates.estimate import estimate_of
from backends.estimates.workload import DataSizes, ModelSizes, Sizes, workload
from layerdrift.contract.analysis import StageName
from layerdrift.contract.request import AnalysisRequest
from tests.builders.stores import MemoryRates

SMALL = ModelSizes(
    blocks=6, width=384, block_parameters=10_616_832, parameters=22_337_280, bytes=91_000_000, language=True
)
SIZES = Sizes(SMALL, DataSizes(rows=10_600, row_tokens=25.0, bytes=1_300_000), tuned_bytes=91_000_000)
BODY: dict[str, Any] = {"base": {"uri": "s3://m/a"}, "finetune": {}, "dataset": {"uri": "s3://d/x.csv"}}
REQUEST = AnalysisRequest.model_validate(BODY)


class Paced(MemoryRates):
    """Stages that take given seconds; `known`: stages of earlier jobs."""

    def __init__(self, pace: Mapping[StageName, float], known: dict[StageName, float] | None = None) -> None:
        super().__init__()
        self._pace = pace
        self._known = known or {}

    def seconds(self, operations: Mapping[StageName, float]) -> dict[StageName, float]:
        return {stage: self._pace[stage] for stage in operations}

    def measured(self) -> dict[StageName, float]:
        return self._known


PACE = dict(zip(StageName, (1.0, 20.0, 300.0, 4_000.0, 50_000.0, 600_000.0, 7_000_000.0, 80_000_000.0), strict=True))


def test_the_first_curve_is_there_when_the_comparison_is_done() -> None:
    estimate = estimate_of(REQUEST, SIZES, Paced(PACE), queued=0)
    assert (estimate.seconds, estimate.first_curve_seconds) == (87_654_321.0, 4_321.0)
    assert {stage.stage: stage.seconds for stage in estimate.stages} == PACE


def test_stages_that_will_not_run_take_no_time() -> None:
    body = {"base": BODY["base"], "tuned": {"uri": "s3://m/b"}, "dataset": BODY["dataset"], "analysis": {"sae": None}}
    estimate = estimate_of(AnalysisRequest.model_validate(body), SIZES, Paced(PACE), queued=0)
    assert estimate.first_curve_seconds == 4_301.0
    assert not {StageName.FINETUNE, StageName.SAE} & {stage.stage for stage in estimate.stages}


@pytest.mark.parametrize(("known", "basis"), [({}, "reference"), ({StageName.EXTRACT: 1e11}, "measured")])
def test_an_estimate_says_whether_jobs_have_run_here(known: dict[StageName, float], basis: str) -> None:
    estimate = estimate_of(REQUEST, SIZES, Paced(PACE, known), queued=3)
    assert (estimate.basis, estimate.queued_before) == (basis, 3)


def test_memory_disk_and_downloads_are_those_of_the_work() -> None:
    work = workload(REQUEST, SIZES.model, SIZES.data, SIZES.tuned_bytes)
    estimate = estimate_of(REQUEST, SIZES, Paced(PACE), queued=0)
    shown = (estimate.memory_bytes, estimate.scratch_bytes, estimate.download_bytes)
    assert shown == (work.memory, work.scratch, work.download)
    assert len(set(shown)) == 3
