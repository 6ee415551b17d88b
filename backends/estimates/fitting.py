"""Whether a live worker can hold a request, and which setting would help where none can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from backends.estimates.capacity import Capacity
from backends.estimates.workload import Sizes, Workload, workload
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest

GIB = 2**30

_Change = Callable[[AnalysisRequest], dict[str, Any]]
_HELP: tuple[tuple[str, str, _Change], ...] = (
    ("/analysis/grafts", "analysis.grafts to false", lambda _: {"grafts": False}),
    ("/analysis/sae", "analysis.sae to null", lambda _: {"sae": None}),
    ("/analysis/sae", "analysis.sae to null and analysis.grafts to false", lambda _: {"sae": None, "grafts": False}),
)
"""Settings that need less memory or disk, the least loss first: where an error points, in words, and the change."""


def require_room(request: AnalysisRequest, sizes: Sizes, workers: Sequence[Capacity], scratch_limit: int) -> None:
    """Raises InputError where no live worker can hold the request; nothing is known where no worker has told its own.

    Args:
        workers: what live workers have. scratch_limit: bytes that a job may write.
    """
    if not workers:
        return
    needed = workload(request, sizes.model, sizes.data, sizes.tuned_bytes, sizes.adapter)
    if any(_fits(needed, worker, scratch_limit) for worker in workers):
        return
    largest = max(workers, key=lambda worker: worker.memory_bytes)
    detail = (
        f"no worker can hold this analysis: it needs about {needed.memory / GIB:.1f} GiB of memory and "
        f"{_written(needed, scratch_limit) / GIB:.1f} GiB of disk; the largest worker has "
        f"{largest.memory_bytes / GIB:.1f} GiB of memory and {largest.scratch_bytes / GIB:.1f} GiB of free disk"
    )
    on_devices = [one.device_memory_bytes for one in workers if one.device_memory_bytes is not None]
    if on_devices and needed.device_memory > max(on_devices):
        detail += (
            f", and {max(on_devices) / GIB:.1f} GiB on its GPU, of which it needs {needed.device_memory / GIB:.1f} GiB"
        )
    for pointer, words, less in _smaller(request):
        work = workload(less, sizes.model, sizes.data, sizes.tuned_bytes, sizes.adapter)
        if any(_fits(work, worker, scratch_limit) for worker in workers):
            raise InputError.at(pointer, f"{detail}. Set {words}: then about {work.memory / GIB:.1f} GiB are enough")
    raise InputError.at("/base/uri", f"{detail}. Start a worker with more memory")


def _smaller(request: AnalysisRequest) -> Iterator[tuple[str, str, AnalysisRequest]]:
    for pointer, words, change in _HELP:
        changes = change(request)
        if any(getattr(request.analysis, name) != value for name, value in changes.items()):
            analysis = request.analysis.model_copy(update=changes)
            yield pointer, words, request.model_copy(update={"analysis": analysis})


def _fits(work: Workload, worker: Capacity, scratch_limit: int) -> bool:
    on_device = worker.device_memory_bytes is None or work.device_memory <= worker.device_memory_bytes
    return on_device and work.memory <= worker.memory_bytes and _written(work, scratch_limit) <= worker.scratch_bytes


def _written(work: Workload, scratch_limit: int) -> int:
    """What a job writes to disk: its checkpoints, and as much of activations and sums as it may."""
    return work.download + min(work.scratch, scratch_limit)
