"""The Celery application as both sides see it: its settings, and how a job is announced.

A message holds an id alone. It is a hint; the record is the truth. There are two queues: workers with a GPU listen to
both, others to `cpu` alone; a job is announced on `gpu` while any worker listens there, or where one is started for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from backends.jobs.records import Record, StudyRecord
from backends.jobs.workers import WorkerRegistry
from backends.settings import Settings
from layerdrift.contract.errors import UnavailableError

ANALYSE_TASK = "layerdrift.analyse"
STUDY_TASK = "layerdrift.study"
QueueName = Literal["gpu", "cpu"]
QUEUES: tuple[QueueName, ...] = ("gpu", "cpu")
_PRIORITIES = 10
_SEPARATOR = "\x06\x16"


def celery_app(settings: Settings) -> Celery:
    """A Celery application on the settings' Redis; connects to nothing yet."""
    app = Celery("layerdrift", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue="cpu",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_pool_start_method="spawn",  # CUDA does not survive a fork
        worker_hijack_root_logger=False,
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": 3600,
            "priority_steps": list(range(_PRIORITIES)),
            "queue_order_strategy": "priority",
        },
    )
    return app


class JobQueue:
    """Announces jobs to the workers.

    Args:
        scaled: queues whose workers are started when jobs wait there.
    """

    def __init__(
        self, app: Celery, client: redis.Redis, workers: WorkerRegistry, scaled: Collection[QueueName] = ()
    ) -> None:
        self._app = app
        self._redis = client
        self._workers = workers
        self._scaled = frozenset(scaled)

    def announce(self, record: Record) -> None:
        """Tells the workers that a job is to be looked at; twice does no harm. UnavailableError without a queue."""
        task = STUDY_TASK if isinstance(record, StudyRecord) else ANALYSE_TASK
        name: QueueName = "gpu" if "gpu" in self._scaled or self._workers.listening("gpu") else "cpu"
        try:
            # a name alone goes through the default exchange: no binding is needed, which an emptied Redis would lack
            self._app.send_task(
                task,
                args=[record.id],
                queue=name,
                priority=_PRIORITIES - 1 - record.priority,  # on Redis 0 comes first
            )
        except OperationalError as error:
            raise UnavailableError(f"the queue could not be reached: {error}") from error

    def waiting(self) -> int:
        """How many announcements no worker has picked up."""
        return sum(self.waiting_in(name) for name in QUEUES)

    def waiting_in(self, name: QueueName) -> int:
        """How many of them one queue has; kombu keeps a list for each queue and priority."""
        with self._redis.pipeline(transaction=False) as pipe:
            for step in range(_PRIORITIES):
                pipe.llen(f"{name}{_SEPARATOR}{step}" if step else name)
            return sum(int(count) for count in pipe.execute())
