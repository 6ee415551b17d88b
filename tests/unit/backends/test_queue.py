"""Announcements, on the queue that kombu has in memory. On Redis, and their order there: test_backends."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty
from typing import Any, cast

import pytest
import redis
from celery import Celery

from backends.jobs.workers import WorkerRegistry
from backends.queue import ANALYSE_TASK, QUEUES, JobQueue, QueueName, celery_app
from backends.settings import Settings
from tests.builders.records import record


class Listening(WorkerRegistry):
    """So many workers on each queue."""

    def __init__(self, **by_queue: int) -> None:
        self._by_queue = by_queue

    def listening(self, queue: str) -> int:
        return self._by_queue.get(queue, 0)


@pytest.fixture
def app() -> Iterator[Celery]:
    made = celery_app(Settings(redis_url="memory://"))
    yield made
    taken(made)


def taken(app: Celery) -> list[tuple[str, Any]]:
    """The messages that wait, each with the name of its queue."""
    found: list[tuple[str, Any]] = []
    with app.connection_for_read() as connection:
        for name in QUEUES:
            with connection.SimpleQueue(name) as waiting:
                try:
                    while True:
                        message = waiting.get_nowait()
                        message.ack()
                        found.append((name, message))
                except Empty:
                    continue
    return found


def queue(app: Celery, **listening: int) -> JobQueue:
    return JobQueue(app, cast(redis.Redis, None), Listening(**listening))


@pytest.mark.parametrize(
    ("listening", "name"),
    [({}, "cpu"), ({"cpu": 3}, "cpu"), ({"gpu": 1, "cpu": 3}, "gpu"), ({"gpu": 1}, "gpu")],
)
def test_a_job_goes_to_workers_with_a_gpu_while_there_are_any(
    app: Celery, listening: dict[str, int], name: str
) -> None:
    queue(app, **listening).announce(record())
    assert [where for where, _ in taken(app)] == [name]


@pytest.mark.parametrize(("scaled", "name"), [(("gpu",), "gpu"), (("cpu",), "cpu"), (("gpu", "cpu"), "gpu")])
def test_a_job_goes_to_workers_with_a_gpu_also_before_any_is_started_for_it(
    app: Celery, scaled: tuple[QueueName, ...], name: str
) -> None:
    JobQueue(app, cast(redis.Redis, None), Listening(), scaled).announce(record())
    assert [where for where, _ in taken(app)] == [name]


def test_a_message_holds_the_id_and_nothing_else_of_the_job(app: Celery) -> None:
    job = record()
    queue(app).announce(job)
    ((_, message),) = taken(app)
    arguments, keywords, _ = message.payload
    assert (message.headers["task"], arguments, keywords) == (ANALYSE_TASK, [job.id], {})
    assert job.request.base.uri not in str(message.body)


@pytest.mark.parametrize(("priority", "step"), [(9, 0), (5, 4), (0, 9)])
def test_the_most_urgent_jobs_get_the_step_that_redis_serves_first(app: Celery, priority: int, step: int) -> None:
    queue(app).announce(record().model_copy(update={"priority": priority}))
    ((_, message),) = taken(app)
    assert message.properties["priority"] == step


def test_a_message_is_given_back_when_its_worker_is_lost(app: Celery) -> None:
    assert (app.conf.task_acks_late, app.conf.task_reject_on_worker_lost) == (True, True)
    assert app.conf.worker_prefetch_multiplier == 1  # a worker holds back no job that another could take
