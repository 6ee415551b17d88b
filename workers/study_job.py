"""One study, once its members have ended: reads their reports and writes its own."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from backends.deployment import Deployment
from backends.jobs.records import JobRecord, StudyRecord
from backends.jobs.studies import members_of, ready
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import LayerdriftError, Problem, StageError
from layerdrift.contract.study import MIN_MEMBERS
from layerdrift.contract.study_report import StudyReport, StudySimilarity
from layerdrift.render import study_html, study_markdown
from workers import scratch_folders
from workers.faults import AWAY, DeviceFault, device_watched, worker_lost
from workers.lease import Lease
from workers.lease_keeper import leased
from workers.models.device import is_device_fault
from workers.studies.gathering import outcomes_of, trial_outcomes
from workers.studies.report import study_report
from workers.studies.shared_rows import shared_rows
from workers.studies.similarity import similarity_of
from workers.studies.trials import begun, with_trials

logger = logging.getLogger(__name__)


def run_study(deployment: Deployment, study_id: str) -> None:
    """Finishes a study whose members have ended, if no other worker does; one that still waits is left alone."""
    with device_watched(study_id):
        _run_leased(deployment, study_id)


def _run_leased(deployment: Deployment, study_id: str) -> None:
    with leased(deployment, deployment.studies, study_id) as lease:
        if lease is None:
            logger.info("%s: another worker has it", study_id)
            return
        found = deployment.studies.get(study_id)
        if found.status.final or not ready(deployment.jobs, found):
            return
        jobs = members_of(deployment.jobs, found)
        record = deployment.studies.update(study_id, lambda one: _taken(one, deployment.settings.max_attempts))
        if record.status.final:
            return
        error = _finished(deployment, record, jobs, lease)
        if lease.lost.is_set():
            logger.warning("%s: lost the lease; another worker continues", study_id)
            return
        if deployment.studies.find(study_id) is not None:  # else somebody deleted it
            deployment.studies.update(study_id, lambda one: _ended(one, record, error))
        logger.info("%s: %s", study_id, "failed" if error else "succeeded")


def _taken(record: StudyRecord, max_attempts: int) -> StudyRecord:
    """The record in the hands of one more worker, or at its end where too many were lost."""
    if record.status.final:
        return record
    if record.cancel_requested:
        return record.ended(Status.CANCELLED)
    if record.attempts >= max_attempts:
        return record.ended(Status.FAILED, worker_lost(record.attempts))
    update = {"status": Status.RUNNING, "attempts": record.attempts + 1, "started_at": datetime.now(UTC)}
    return record.model_copy(update=update)


def _ended(found: StudyRecord, taken: StudyRecord, error: Problem | None) -> StudyRecord:
    """The record at its end, unless somebody else has it by now."""
    if found.status.final or found.attempts != taken.attempts:
        return found
    if found.cancel_requested:
        return found.ended(Status.CANCELLED)
    return found.ended(Status.FAILED if error else Status.SUCCEEDED, error)


def _finished(
    deployment: Deployment, record: StudyRecord, jobs: list[JobRecord | None], lease: Lease
) -> Problem | None:
    """Writes the report; what keeps it from being written.

    Raises:
        UnavailableError, redis.RedisError: S3 or Redis is unavailable; the study is announced again.
    """
    try:
        outcomes = outcomes_of(deployment, record, jobs)
        if begun(deployment, record, outcomes, jobs):
            return None
        similarity = _similarity(deployment, record, jobs, lease)
        now = datetime.now(UTC)
        report = study_report(record.id, record.title, record.request, outcomes, now, similarity)
        report = with_trials(report, trial_outcomes(deployment, record))
        if _is_ours(deployment, record, lease):
            _publish(deployment, record, report)
    except (*AWAY, DeviceFault):
        raise
    except LayerdriftError as error:
        return error.problem()
    except Exception as error:  # whatever is wrong with one study must not keep the worker from the next
        logger.exception("%s: failed", record.id)
        return StageError(f"the report of the study failed with {type(error).__name__}: {error}").problem()
    return None


def _is_ours(deployment: Deployment, record: StudyRecord, lease: Lease) -> bool:
    """Whether nobody has taken, opened again or deleted the study meanwhile."""
    found = deployment.studies.find(record.id)
    return not lease.lost.is_set() and found is not None and found.attempts == record.attempts


def _similarity(
    deployment: Deployment, record: StudyRecord, jobs: list[JobRecord | None], lease: Lease
) -> StudySimilarity | str | None:
    """The tuned models beside one another, or why not; None where that was not asked for, or there are not two.

    Raises:
        UnavailableError: S3 is unavailable.
    """
    done = [
        (member.name, job)
        for member, job in zip(record.members, jobs, strict=True)
        if job is not None and job.status is Status.SUCCEEDED
    ]
    if not record.request.similarity or len(done) < MIN_MEMBERS:
        return None
    names, members = [name for name, _ in done], [job for _, job in done]
    with scratch_folders.held(deployment.settings.scratch / f"{record.id}.{lease.owner}") as folder:
        try:
            return similarity_of(names, shared_rows(deployment, members, folder, lease.pulse.beat), lease.pulse.beat)
        except AWAY:
            raise
        except LayerdriftError as error:
            return error.detail
        except Exception as error:  # the members' reports stand without it
            if is_device_fault(error):
                raise DeviceFault from error
            logger.exception("%s: the members were not compared", record.id)
            return f"{type(error).__name__}: {error}"


def _publish(deployment: Deployment, record: StudyRecord, report: StudyReport) -> None:
    """Writes the report in every format; the JSON last, since the others are drawn from it."""
    deployment.reports.put(record.owned, "html", study_html.render(report).encode())
    deployment.reports.put(record.owned, "md", study_markdown.render(report).encode())
    deployment.reports.put(record.owned, "json", report.model_dump_json(indent=1).encode())
