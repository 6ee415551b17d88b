"""The Celery task: an id comes, the job runs."""

from __future__ import annotations

from functools import cache

from celery import shared_task

from backends.deployment import Deployment
from backends.observability import tracing
from backends.queue import ANALYSE_TASK, STUDY_TASK
from backends.settings import Settings
from workers.fair_share import in_turn


@cache
def deployment() -> Deployment:
    """This process's connections, made when the first task needs them."""
    tracing.configure("layerdrift-worker")
    return Deployment.connect(Settings())


@shared_task(name=ANALYSE_TASK)
def analyse(analysis_id: str) -> None:
    """Runs a job to its end, the one whose turn it is. Shared: a spawned child of the pool has an application too."""
    from workers.job import run_job  # brings torch, which the pool's main process does without

    for id_ in in_turn(deployment(), analysis_id):
        if run_job(deployment(), id_):
            return


@shared_task(name=STUDY_TASK)
def study(study_id: str) -> None:
    """Finishes a study whose members have ended."""
    from workers.study_job import run_study  # brings scipy and the charts

    run_study(deployment(), study_id)
