"""The Celery application as both sides see it: its settings, and how a job is announced.

A message holds an id alone. It is a hint; the record is the truth.
"""

from __future__ import annotations

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from layerdrift.backends.settings import Settings
from layerdrift.contract.errors import UnavailableError

ANALYSE_TASK = "layerdrift.analyse"
QUEUE = "layerdrift"


def celery_app(settings: Settings) -> Celery:
    """A Celery application on the settings' Redis; connects to nothing yet."""
    app = Celery("layerdrift", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_pool_start_method="spawn",  # CUDA does not survive a fork
        worker_hijack_root_logger=False,
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": 3600},
    )
    return app


class JobQueue:
    """Announces jobs to the workers."""

    def __init__(self, app: Celery, client: redis.Redis) -> None:
        self._app = app
        self._redis = client

    def announce(self, analysis_id: str) -> None:
        """Tells the workers that a job is to be looked at; twice does no harm. UnavailableError without a queue."""
        try:
            self._app.send_task(ANALYSE_TASK, args=[analysis_id], queue=QUEUE)
        except OperationalError as error:
            raise UnavailableError(f"the queue could not be reached: {error}") from error

    def waiting(self) -> int:
        """How many announcements no worker has picked up; kombu keeps them in a list named after the queue."""
        return int(self._redis.llen(QUEUE))
