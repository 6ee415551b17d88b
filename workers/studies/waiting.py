"""Studies that wait for a job."""

from __future__ import annotations

import logging

import redis

from backends.deployment import Deployment
from backends.jobs.records import JobRecord, StudyRecord
from backends.jobs.studies import ready
from layerdrift.contract.errors import UnavailableError

logger = logging.getLogger(__name__)


def announce_waiting(deployment: Deployment, ended: JobRecord) -> None:
    """Announces the studies that waited for this job alone. Without Redis the reconciler does it later."""
    try:
        for study in deployment.studies.find_all(deployment.studies.open_ids(), ended.tenant):
            of_it = study is not None and ended.id in _jobs_of(study)
            if study is not None and of_it and ready(deployment.jobs, study):
                deployment.queue.announce(study)
    except (redis.RedisError, UnavailableError) as error:
        logger.warning("%s: could not look for studies that wait for it: %s", ended.id, error)


def _jobs_of(study: StudyRecord) -> set[str]:
    return {one.analysis_id for one in study.members} | {one.analysis_id for one in study.trials}
