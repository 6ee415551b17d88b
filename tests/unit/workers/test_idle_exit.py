"""A worker that was started by demand ends after a while without a job, and never during one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from workers.idle_exit import IdleExit


@dataclass
class Worker:
    """A clock that is set by hand, and whether there is a job."""

    time: float = 100.0
    job: bool = False
    ends: list[float] = field(default_factory=list)

    def idle_exit(self, seconds: float = 10.0) -> IdleExit:
        return IdleExit(seconds, lambda: self.job, lambda: self.ends.append(self.time), lambda: self.time)


def test_it_ends_after_the_seconds_and_not_before() -> None:
    worker = Worker()
    idle = worker.idle_exit()
    for worker.time in (101.0, 109.9):
        idle.look()
    assert worker.ends == []
    worker.time = 110.0
    idle.look()
    assert worker.ends == [110.0]


@pytest.mark.parametrize("length", [1.0, 1000.0])
def test_a_job_is_never_ended_and_the_seconds_count_from_its_end(length: float) -> None:
    worker = Worker()
    idle = worker.idle_exit()
    worker.time, worker.job = 105.0, True
    idle.look()
    worker.time += length
    idle.look()
    worker.job = False
    worker.time += 9.9
    idle.look()
    assert worker.ends == []
    worker.time += 0.2
    idle.look()
    assert len(worker.ends) == 1


def test_the_end_is_asked_for_once() -> None:
    worker = Worker()
    idle = worker.idle_exit(0.0)
    idle.start()
    idle._thread.join(timeout=10)
    assert worker.ends == [100.0]
