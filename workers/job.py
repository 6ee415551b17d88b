"""One job from its lease to its end, and what becomes of errors."""

from __future__ import annotations

import gc
import logging
from datetime import UTC, datetime
from pathlib import Path

import redis

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.observability import metrics, tracing
from backends.storage import key_names
from layerdrift.contract.analysis import Progress, StageName, Status
from layerdrift.contract.errors import LayerdriftError, Problem, StageError
from layerdrift.contract.policy import Decision
from layerdrift.policies import starter_decision
from workers import scratch_folders
from workers.faults import AWAY, DeviceFault, device_watched, worker_lost
from workers.lease import Lease
from workers.lease_keeper import leased
from workers.models.device import is_device_fault, start_threads
from workers.pipeline import run_stages, stages_of
from workers.progress_writer import Cancelled, LeaseLost, ProgressWriter, StageFailed
from workers.studies.waiting import announce_waiting
from workers.training_states import BucketCheckpoints

logger = logging.getLogger(__name__)


def run_job(deployment: Deployment, analysis_id: str) -> bool:
    """Runs a job if no other worker holds it, and leaves its record in a final state; False where there was none.

    A worker that dies, or that Redis, S3 or its device fail, leaves the record open: the lease ends and the job is
    announced again.
    """
    start_threads()
    gc.freeze()  # modules are no garbage: looking through them after every stage took most of a small job's time
    with device_watched(analysis_id):
        return _run_leased(deployment, analysis_id)


def _run_leased(deployment: Deployment, analysis_id: str) -> bool:
    jobs, settings = deployment.jobs, deployment.settings
    with leased(deployment, jobs, analysis_id) as lease:
        if lease is None:
            logger.info("%s: another worker has it", analysis_id)
            return False
        if jobs.get(analysis_id).status.final:
            return False
        record = jobs.update(analysis_id, lambda found: _taken(found, settings.max_attempts))
        if not record.status.final:
            metrics.ATTEMPTS.inc()
            deployment.leases.note_turn(record.tenant)
            with scratch_folders.held(settings.scratch / f"{analysis_id}.{lease.owner}") as folder:
                record = _run(deployment, record, folder, lease)
        if record.status.final:
            metrics.JOBS.labels(record.status.value).inc()
            _forget_unfinished(deployment, record.owned)
            announce_waiting(deployment, record)
    return True


def _taken(record: JobRecord, max_attempts: int) -> JobRecord:
    """The record in the hands of one more worker, or at its end where somebody asked for that or too many were lost."""
    if record.status.final:
        return record
    if record.cancel_requested:
        return record.ended(Status.CANCELLED)
    if record.attempts >= max_attempts:
        return record.ended(Status.FAILED, worker_lost(record.attempts))
    return record.model_copy(
        update={
            "status": Status.RUNNING,
            "attempts": record.attempts + 1,
            "started_at": record.started_at or datetime.now(UTC),
            "progress": Progress(),
        }
    )


def _run(deployment: Deployment, record: JobRecord, folder: Path, lease: Lease) -> JobRecord:
    """The record at its end, or as it was where another worker is to go on."""
    writer = ProgressWriter(deployment.jobs, record.id, stages_of(record), lease, _expected_seconds(deployment, record))
    drift: list[float] | None = None
    decision: Decision | None = None
    try:
        with tracing.span("analysis", record.trace, job_id=record.id, attempt=str(record.attempts)):
            report = run_stages(deployment, record, folder, writer)
    except LeaseLost:
        logger.warning("%s: lost the lease; another worker continues", record.id)
        return record
    except Cancelled:
        status, error = Status.CANCELLED, None
    except StageFailed as failure:
        if _left_open(record, failure, lease):
            return record
        status, error = Status.FAILED, _problem(failure)
        logger.error("%s: stage %s failed", record.id, failure.stage, exc_info=failure.__cause__)
    else:
        status, error, decision = Status.SUCCEEDED, None, starter_decision(report)
        drift = [layer.drift for layer in report.layers]

    def end(found: JobRecord) -> JobRecord:
        if found.status.final or found.attempts != record.attempts or lease.lost.is_set():
            return found
        return found.ended(status, error).model_copy(
            update={"progress": writer.progress(), "drift": drift, "verdict": decision}
        )

    ended = deployment.jobs.update(record.id, end)
    if ended.status is Status.SUCCEEDED:
        _record_rates(deployment, record, writer)
    logger.info("%s: %s", record.id, ended.status)
    return ended


def _left_open(record: JobRecord, failure: StageFailed, lease: Lease) -> bool:
    """Whether a failure is none of the job's, so that another worker goes on with it.

    Raises:
        DeviceFault: nor can this process.
    """
    if lease.lost.is_set():
        logger.warning("%s: lost the lease; another worker continues", record.id)
        return True
    if is_device_fault(failure.__cause__):
        raise DeviceFault from failure.__cause__
    if isinstance(failure.__cause__, AWAY):
        logger.warning("%s: returned to the queue in stage %s: %s", record.id, failure.stage, failure.__cause__)
        return True
    return False


def _expected_seconds(deployment: Deployment, record: JobRecord) -> dict[StageName, float]:
    try:
        return deployment.rates.seconds(record.operations)
    except redis.RedisError as error:
        logger.warning("%s: no estimate: %s", record.id, error)
        return {}


def _record_rates(deployment: Deployment, record: JobRecord, writer: ProgressWriter) -> None:
    """Keeps what the stages took, for later estimates; one that took over earlier work tells nothing."""
    try:
        for stage, operations in record.operations.items():
            if stage in writer.seconds and stage not in writer.reused:
                deployment.rates.record(stage, operations, writer.seconds[stage])
    except redis.RedisError as error:
        logger.warning("%s: could not store its pace: %s", record.id, error)


def _forget_unfinished(deployment: Deployment, owned: key_names.Owned) -> None:
    try:
        BucketCheckpoints(deployment.blobs, owned).clear()
        deployment.reports.forget_preliminary(owned)
    except AWAY as error:  # no more than room in the bucket and in Redis
        logger.warning("%s: could not remove the saved states of its trainings: %s", owned.id, error)


def _problem(failure: StageFailed) -> Problem:
    cause = failure.__cause__
    if isinstance(cause, LayerdriftError):
        return cause.problem().model_copy(update={"stage": failure.stage.value})
    error = StageError(f"{failure.stage} failed with {type(cause).__name__}: {cause}")
    return error.problem().model_copy(update={"stage": failure.stage.value})
