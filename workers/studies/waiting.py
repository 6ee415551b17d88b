"""Studies that wait for their members: which can be finished now."""

from __future__ import annotations

import logging

import redis

from backends.deployment import Deployment
from backends.jobs.records import JobRecord, StudyRecord
from layerdrift.contract.errors import UnavailableError

logger = logging.getLogger(__name__)


def members_of(deployment: Deployment, study: StudyRecord) -> list[JobRecord | None]:
    """The members' jobs, in their order; None for one that somebody deleted."""
    return deployment.jobs.find_all([member.analysis_id for member in study.members], study.tenant)


def ready(deployment: Deployment, study: StudyRecord) -> bool:
    """Whether all members have ended."""
    return all(job is None or job.status.final for job in members_of(deployment, study))


def announce_waiting(deployment: Deployment, ended: JobRecord) -> None:
    """Announces the studies that waited for this job alone. Without Redis the reconciler does it later."""
    try:
        for study in deployment.studies.find_all(deployment.studies.open_ids(), ended.tenant):
            of_it = study is not None and any(member.analysis_id == ended.id for member in study.members)
            if study is not None and of_it and ready(deployment, study):
                deployment.queue.announce(study)
    except (redis.RedisError, UnavailableError) as error:
        logger.warning("%s: could not look for studies that wait for it: %s", ended.id, error)
