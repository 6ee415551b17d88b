"""Sizes and rates in, an estimate out."""

from __future__ import annotations

from backends.estimates.rates import Rates
from backends.estimates.workload import Sizes, workload
from layerdrift.contract.analysis import StageName
from layerdrift.contract.estimate import Estimate, StageEstimate
from layerdrift.contract.request import AnalysisRequest

_UNTIL_FIRST_CURVE = (StageName.RESOLVE, StageName.FINETUNE, StageName.EXTRACT, StageName.COMPARE)


def estimate_of(request: AnalysisRequest, sizes: Sizes, rates: Rates, queued: int) -> Estimate:
    """What a request will take on the workers that have run jobs here; of a reference machine before the first one."""
    work = workload(request, sizes.model, sizes.data, sizes.tuned_bytes, sizes.adapter)
    seconds = rates.seconds(work.operations)
    return Estimate(
        seconds=round(sum(seconds.values()), 1),
        first_curve_seconds=round(sum(seconds.get(stage, 0.0) for stage in _UNTIL_FIRST_CURVE), 1),
        stages=[StageEstimate(stage=stage, seconds=round(value, 1)) for stage, value in seconds.items()],
        memory_bytes=work.memory,
        device_memory_bytes=work.device_memory,
        scratch_bytes=work.scratch,
        download_bytes=work.download,
        basis="measured" if rates.measured() else "reference",
        queued_before=queued,
    )
