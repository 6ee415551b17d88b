"""Requests that no worker can hold, and the setting that would help."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.estimates.capacity import Capacity
from backends.estimates.fitting import GIB, require_room
from backends.estimates.workload import DataSizes, ModelSizes, Sizes, workload
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest

EIGHT = ModelSizes(
    blocks=32, width=4096, block_parameters=6_980_000_000, parameters=8_030_000_000, bytes=16_060_000_000
)
SIZES = Sizes(EIGHT, DataSizes(rows=1_000, row_tokens=50.0, bytes=300_000), tuned_bytes=EIGHT.bytes)


def request(**analysis: Any) -> AnalysisRequest:
    body = {"base": {"uri": "s3://m/a"}, "tuned": {"uri": "s3://m/b"}, "dataset": {"uri": "s3://d/x.csv"}}
    return AnalysisRequest.model_validate(body | {"analysis": analysis})


def worker(memory: float, disk: float = 500.0, device: float | None = None) -> Capacity:
    on_device = None if device is None else int(device * GIB)
    return Capacity(
        cores=8, memory_bytes=int(memory * GIB), scratch_bytes=int(disk * GIB), device_memory_bytes=on_device
    )


def refused(asked: AnalysisRequest, *workers: Capacity) -> tuple[str, str]:
    with pytest.raises(InputError) as raised:
        require_room(asked, SIZES, workers, 20 * GIB)
    (problem,) = raised.value.errors
    return problem.pointer, problem.detail


def test_nothing_is_refused_before_a_worker_has_told_what_it_has() -> None:
    require_room(request(), SIZES, [], 20 * GIB)


def test_one_worker_that_is_large_enough_is_enough() -> None:
    require_room(request(sae=None, grafts=False), SIZES, [worker(1), worker(24)], 20 * GIB)


def test_the_setting_that_would_help_is_named_with_the_estimate() -> None:
    pointer, detail = refused(request(), worker(8), worker(12))
    assert pointer == "/analysis/sae"
    assert "the largest worker has 12.0 GiB of memory and 500.0 GiB of free disk" in detail
    assert "Set analysis.sae to null: then about" in detail


def test_a_setting_that_is_made_already_is_not_named_again() -> None:
    needs = workload(request(sae=None, max_tokens=1_000), EIGHT, SIZES.data).memory / GIB
    pointer, detail = refused(request(sae=None, max_tokens=1_000), worker(needs - 0.1))
    assert pointer == "/analysis/grafts"
    assert "Set analysis.grafts to false: then about" in detail


def test_where_no_setting_helps_it_says_so() -> None:
    pointer, detail = refused(request(sae=None, grafts=False), worker(2))
    assert pointer == "/base/uri"
    assert detail.endswith("Start a worker with more memory")


def test_an_adapter_of_a_large_base_needs_no_more_than_a_whole_checkpoint_where_it_is_not_merged() -> None:
    adapter = replace(SIZES, tuned_bytes=50_000_000, adapter=True)
    require_room(request(), adapter, [worker(24)], 20 * GIB)
    whole, lighter = (
        workload(request(sae=None), sizes.model, sizes.data, sizes.tuned_bytes, sizes.adapter)
        for sizes in (SIZES, adapter)
    )
    assert lighter.memory < whole.memory  # what is in no block is in memory once


def test_disk_counts_as_memory_does() -> None:
    _, detail = refused(request(sae=None, grafts=False), worker(64, disk=10))
    assert "GiB of disk; the largest worker has 64.0 GiB of memory and 10.0 GiB of free disk" in detail


def test_the_memory_of_a_gpu_counts_where_a_worker_has_one() -> None:
    require_room(request(), SIZES, [worker(64, device=24)], 20 * GIB)
    pointer, detail = refused(request(sae=None, grafts=False), worker(64, device=4))
    assert pointer == "/base/uri"
    assert "and 4.0 GiB on its GPU, of which it needs" in detail


def test_the_default_analysis_of_8b_fits_one_card_of_24_gigabytes_and_of_70b_one_machine() -> None:
    seventy = ModelSizes(80, 8192, 68_400_000_000, 70_600_000_000, 141_000_000_000)
    card = 24 * 10**9
    for model, memory in ((EIGHT, 24), (seventy, 64)):
        work = workload(request(), model, SIZES.data)
        assert work.device_memory < card
        assert work.memory < memory * GIB
