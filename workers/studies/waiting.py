"""Studies that wait for a job."""

from __future__ import annotations

import logging

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.jobs.studies import ready
from workers.faults import AWAY

logger = logging.getLogger(__name__)


def announce_waiting(deployment: Deployment, ended: JobRecord) -> None:
    """Announces the studies that waited for this job alone. Without Redis the reconciler does it later."""
    try:
        for study in deployment.studies.find_all(deployment.studies.open_ids(), ended.tenant):
            if study is None or all(one.analysis_id != ended.id for one in study.awaited):
                continue
            if ready(deployment.jobs, study):
                deployment.queue.announce(study)
    except AWAY as error:
        logger.warning("%s: could not look for studies that wait for it: %s", ended.id, error)
