"""Requests that no worker can hold, and the setting that would help."""

from __future__ import annotations

from typing import Any

import pytest

from backends.estimates.capacity import Capacity
from backends.estimates.fitting import GIB, require_room
from backends.estimates.workload import DataSizes, ModelSizes, Sizes
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest

EIGHT = ModelSizes(
    blocks=32, width=4096, block_parameters=6_980_000_000, parameters=8_030_000_000, bytes=16_060_000_000
)
SIZES = Sizes(EIGHT, DataSizes(rows=1_000, row_tokens=50.0, bytes=300_000), tuned_bytes=EIGHT.bytes)


def request(**analysis: Any) -> AnalysisRequest:
    body = {"base": {"uri": "s3://m/a"}, "tuned": {"uri": "s3://m/b"}, "dataset": {"uri": "s3://d/x.csv"}}
    return AnalysisRequest.model_validate(body | {"analysis": analysis})


def worker(memory: float, disk: float = 500.0) -> Capacity:
    return Capacity(cores=8, memory_bytes=int(memory * GIB), scratch_bytes=int(disk * GIB))


def refused(asked: AnalysisRequest, *workers: Capacity, adapter: bool = False) -> tuple[str, str]:
    with pytest.raises(InputError) as raised:
        require_room(asked, SIZES, workers, 20 * GIB, adapter)
    (problem,) = raised.value.errors
    return problem.pointer, problem.detail


def test_nothing_is_refused_before_a_worker_has_told_what_it_has() -> None:
    require_room(request(), SIZES, [], 20 * GIB, adapter=False)


def test_one_worker_that_is_large_enough_is_enough() -> None:
    require_room(request(sae=None, grafts=False), SIZES, [worker(1), worker(24)], 20 * GIB, adapter=False)


def test_the_setting_that_would_help_is_named_with_the_estimate() -> None:
    pointer, detail = refused(request(), worker(8), worker(24))
    assert pointer == "/analysis/sae"
    assert "the largest worker has 24.0 GiB of memory and 500.0 GiB of free disk" in detail
    assert "Set analysis.sae to null and analysis.grafts to false: then about" in detail


def test_a_setting_that_is_made_already_is_not_named_again() -> None:
    pointer, detail = refused(request(sae=None), worker(24))
    assert pointer == "/analysis/grafts"
    assert "Set analysis.grafts to false: then about" in detail


def test_where_no_setting_helps_it_says_so() -> None:
    pointer, detail = refused(request(sae=None, grafts=False), worker(2))
    assert pointer == "/base/uri"
    assert detail.endswith("Start a worker with more memory")


def test_an_adapter_of_a_large_base_needs_no_more_than_a_whole_checkpoint_where_it_is_not_merged() -> None:
    require_room(request(sae=None, grafts=False), SIZES, [worker(24)], 20 * GIB, adapter=True)
    pointer, detail = refused(request(sae=None), worker(48), adapter=True)
    assert (pointer, "Set analysis.grafts to false" in detail) == ("/analysis/grafts", True)


def test_disk_counts_as_memory_does() -> None:
    _, detail = refused(request(sae=None, grafts=False), worker(64, disk=10))
    assert "GiB of disk; the largest worker has 64.0 GiB of memory and 10.0 GiB of free disk" in detail
