"""Announces jobs that no worker holds, registers this worker, refills an emptied Redis, sweeps abandoned scratch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence

import redis

from backends.deployment import Deployment
from backends.jobs.records import NewerRecordError, Record, StudyRecord
from backends.jobs.studies import ready
from backends.queue import QueueName
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import LayerdriftError
from workers import scratch_folders
from workers.capacity import capacity

EVERY_SECONDS = 5.0
ALIVE_SECONDS = 20.0
ANNOUNCE_EVERY_SECONDS = 60.0
PATIENCE = 3
"""A job is announced again when it was open and held by nobody at so many looks in a row."""

logger = logging.getLogger(__name__)


class Reconciler:
    """A thread of a worker's main process. Every worker has one; announcing a job twice does no harm."""

    def __init__(self, deployment: Deployment, worker: str, queues: Sequence[QueueName] = ("cpu",)) -> None:
        self._deployment = deployment
        self._worker = worker
        self._queues = queues
        self._idle: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Begins at once."""
        self._thread.start()

    def stop(self) -> None:
        """Says that this worker is gone."""
        self._stopped.set()
        self._thread.join(timeout=EVERY_SECONDS)
        self._deployment.workers.withdraw(self._worker, self._queues)

    def look(self) -> list[str]:
        """One look at the open jobs; the ids that were announced again."""
        leases = self._deployment.leases
        own = capacity(self._deployment.settings.scratch)
        self._deployment.workers.announce(self._worker, self._queues, ALIVE_SECONDS, own)
        self._restore()
        unheld = {record.id: record for record in self._forgotten(self._deployment.queue.waiting())}
        self._idle = {id_: self._idle.get(id_, 0) + 1 for id_ in unheld}
        patient = [id_ for id_, looks in self._idle.items() if looks >= PATIENCE]
        due = [id_ for id_ in patient if leases.claim_announcement(id_, ANNOUNCE_EVERY_SECONDS)]
        for id_ in due:
            logger.warning("%s: no worker has it; announced again", id_)
            self._deployment.queue.announce(unheld[id_])
        self._sweep()
        return due

    def _restore(self) -> None:
        restored = self._deployment.jobs.restore() + self._deployment.studies.restore()
        if restored:
            logger.warning("Redis had no jobs; %d records were restored from S3", restored)

    def _forgotten(self, waiting: int) -> Iterator[Record]:
        """Open jobs that nobody holds and that do not just wait for their turn in the queue; studies that can be
        finished and that nobody holds."""
        jobs, studies, held = self._deployment.jobs, self._deployment.studies, self._deployment.leases.held
        for job in map(jobs.readable, jobs.open_ids()):
            if job is not None and not held(job.id) and (waiting == 0 or job.status is Status.RUNNING):
                yield job
        for study in map(studies.readable, studies.open_ids()):
            if study is not None and not held(study.id) and self._ready(study):
                yield study

    def _ready(self, study: StudyRecord) -> bool:
        """Whether all that it waits for has ended; not where a later version runs one of its members."""
        try:
            return ready(self._deployment.jobs, study)
        except NewerRecordError:
            return False

    def _sweep(self) -> None:
        """Takes away the scratch that a killed worker left: of a job that nobody holds or works on, and old."""
        scratch = self._deployment.settings.scratch
        oldest = time.time() - 4 * self._deployment.settings.lease_seconds
        for folder in scratch_folders.left_behind(scratch, oldest):
            if not self._deployment.leases.held(folder.name.partition(".")[0]):
                scratch_folders.remove(folder)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except (redis.RedisError, LayerdriftError, OSError, ValueError) as error:
                logger.warning("could not check the open jobs: %s", error)
            if self._stopped.wait(EVERY_SECONDS):
                return
