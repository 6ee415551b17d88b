"""How far a job has come, written to its record; and whether it is to stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import redis

from backends.jobs.records import JobRecord
from backends.jobs.store import JobStore
from layerdrift.contract.analysis import Progress, Stage, StageName
from layerdrift.contract.errors import UnavailableError
from workers.lease import Lease
from workers.results.pending import PendingStage
from workers.stages.common.progress import NO_NUMBERS, Numbers

WRITE_EVERY_SECONDS = 0.5
TELLING_FRACTION = 0.2
"""From here on a stage's own pace tells its end better than the estimate does."""

ADDED_FIELDS: Final[dict[StageName, list[str]]] = {
    StageName.LEARNED: ["learned"],
    StageName.SAE: ["layers[*].sae", "latents", "sae_runs", "tokens.texts[*].latents", "autoencoders", "latent_table"],
    StageName.CAUSAL: ["layers[*].graft", "layers[*].sae.ablation", "causal", "trajectory", "recommendation"],
}
"""What stages after `compare` add to a report."""

logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """Somebody asked the job to stop."""


class LeaseLost(Exception):
    """Another worker may hold the job now: this one must not write to it any more."""


class StageFailed(Exception):
    """A stage raised; `stage` says which, `__cause__` what."""

    def __init__(self, stage: StageName) -> None:
        super().__init__(stage)
        self.stage = stage


class ProgressWriter:
    """Writes the progress of one job, a few times a second at most, and raises when it is to stop.

    Attributes:
        seconds: of the stages that have ended. expected: of all stages, as estimated before the first one.
        reused: the stages that took over what an earlier analysis had made.
    """

    def __init__(
        self,
        jobs: JobStore,
        analysis_id: str,
        stages: list[StageName],
        lease: Lease,
        expected: Mapping[StageName, float] | None = None,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self.reused: list[StageName] = []
        self._jobs = jobs
        self._id = analysis_id
        self._stages = [Stage(name=name) for name in stages]
        self._current = 0
        self._written = 0.0
        self._lease = lease
        self.expected = dict(expected or {})
        self._began = time.monotonic()

    @contextmanager
    def stage(self, name: StageName) -> Iterator[None]:
        """Marks a stage as running, then as ended.

        Raises:
            StageFailed: whatever went wrong inside, but for a cancellation.
        """
        self._lease.pulse.beat()
        self._current = next(index for index, stage in enumerate(self._stages) if stage.name == name)
        started = self._began = time.monotonic()
        self._set(status="running", started_at=datetime.now(UTC))
        self._write()
        try:
            yield
        except (Cancelled, LeaseLost):
            self._set(status="cancelled", finished_at=datetime.now(UTC))
            raise
        except Exception as error:
            self._set(status="failed", finished_at=datetime.now(UTC))
            raise StageFailed(name) from error
        self.seconds[name] = round(time.monotonic() - started, 3)
        self._set(status="succeeded", fraction=1.0, finished_at=datetime.now(UTC))
        self._write()

    def on_progress(self, fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
        """The current stage has come so far."""
        self._lease.pulse.beat()
        if self._lease.lost.is_set():
            raise LeaseLost
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        told = {"detail": detail} if detail else {}
        self._set(fraction=min(1.0, max(0.0, fraction)), numbers=finite, **told)
        if time.monotonic() - self._written >= WRITE_EVERY_SECONDS:
            self._write()

    def pending(self) -> list[PendingStage]:
        """The stages that are still to come and what they add to the report."""
        return [
            PendingStage(
                stage=stage.name.value,
                fields=ADDED_FIELDS[stage.name],
                expected_seconds=_rounded(self.expected.get(stage.name)),
            )
            for stage in self._stages[self._current + 1 :]
            if stage.name in ADDED_FIELDS
        ]

    def progress(self) -> Progress:
        """The progress as it stands."""
        done = sum(stage.fraction for stage in self._stages) / len(self._stages)
        return Progress(
            stage=self._stages[self._current].name,
            fraction=min(1.0, done),
            stages=list(self._stages),
            seconds_left=self._seconds_left(),
        )

    def _seconds_left(self) -> float | None:
        """Of the stage that runs by how far it is, once that says something; of later ones as expected."""
        if not self.expected:
            return None
        current = self._stages[self._current]
        later = sum(self.expected.get(stage.name, 0.0) for stage in self._stages[self._current + 1 :])
        if current.status != "running":
            return _rounded(later)
        spent, expected = time.monotonic() - self._began, self.expected.get(current.name, 0.0)
        own = max(0.0, expected * (1 - current.fraction))
        if current.fraction > TELLING_FRACTION:
            own = spent / current.fraction * (1 - current.fraction)
        return _rounded(own + later)

    def _set(self, **changes: object) -> None:
        self._stages[self._current] = self._stages[self._current].model_copy(update=changes)

    def _write(self) -> None:
        if self._lease.lost.is_set():
            raise LeaseLost
        progress = self.progress()

        def put(record: JobRecord) -> JobRecord:
            return record if record.status.final else record.model_copy(update={"progress": progress})

        self._written = time.monotonic()
        try:
            record = self._jobs.update(self._id, put)
        except (redis.RedisError, UnavailableError) as error:
            logger.warning("%s: could not write the progress: %s", self._id, error)  # not worth a job
            return
        if record.cancel_requested:
            raise Cancelled


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
