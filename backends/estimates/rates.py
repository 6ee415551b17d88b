"""How fast the workers of this deployment are: operations a second by stage, from the last jobs that they finished."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, Final

import redis

from backends.storage import key_names
from layerdrift.contract.analysis import StageName

KEPT = 9
"""Jobs that a rate is the median of."""

REFERENCE_RATES: Final[Mapping[StageName, float]] = {
    StageName.RESOLVE: 1.5e8,
    StageName.FINETUNE: 1.4e11,
    StageName.EXTRACT: 1.2e11,
    StageName.COMPARE: 2.5e10,
    StageName.LEARNED: 1.2e11,
    StageName.SAE: 1.3e11,
    StageName.CAUSAL: 1.3e11,
    StageName.REPORT: 14.0,
}
"""Of 2 cores without AMX, measured by `make bench-demo`; bytes a second for `resolve`, layers for `report`."""


class Rates:
    """Medians by stage; of all workers alike."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def record(self, stage: StageName, operations: float, seconds: float) -> None:
        """What a stage that has finished took."""
        if operations <= 0 or seconds <= 0:
            return
        with self._redis.pipeline() as pipe:
            pipe.lpush(key_names.rates(stage), repr(operations / seconds))
            pipe.ltrim(key_names.rates(stage), 0, KEPT - 1)
            pipe.execute()

    def measured(self) -> dict[StageName, float]:
        """The median of each stage that some job has finished."""
        with self._redis.pipeline(transaction=False) as pipe:
            for stage in StageName:
                pipe.lrange(key_names.rates(stage), 0, KEPT - 1)
            answers: Any = pipe.execute()
        return {
            stage: statistics.median(float(one) for one in found)
            for stage, found in zip(StageName, answers, strict=True)
            if found
        }

    def seconds(self, operations: Mapping[StageName, float]) -> dict[StageName, float]:
        """About how long each stage takes. A stage without a rate of its own is as much slower as the others are."""
        measured = self.measured()
        ratios = [measured[stage] / REFERENCE_RATES[stage] for stage in measured if stage in _COMPUTED]
        faster = statistics.median(ratios) if ratios else 1.0
        return {
            stage: count / measured.get(stage, REFERENCE_RATES[stage] * faster) for stage, count in operations.items()
        }


_COMPUTED = (
    StageName.FINETUNE,
    StageName.EXTRACT,
    StageName.COMPARE,
    StageName.LEARNED,
    StageName.SAE,
    StageName.CAUSAL,
)
