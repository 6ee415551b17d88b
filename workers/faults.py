"""What ends an analysis or a study that is no fault of its own: servers that are away, devices, lost workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis

from backends.observability import logs
from layerdrift.contract.errors import Problem, UnavailableError
from workers.lease_keeper import end_process

logger = logging.getLogger(__name__)

AWAY: Final = (UnavailableError, redis.RedisError)
"""What is raised while a server behind the work is unavailable."""


class DeviceFault(Exception):
    """The device of this process answers nothing any more: the work goes on in another process."""


@contextmanager
def device_watched(id_: str) -> Iterator[None]:
    """Logs with the id of what is worked on, and ends this process on a DeviceFault."""
    with logs.bound(job_id=id_):
        try:
            yield
        except DeviceFault as fault:
            logger.error("%s: the device is of no more use; ending this process", id_, exc_info=fault.__cause__)
            end_process()


def worker_lost(times: int) -> Problem:
    """What is said of a job that so many workers took and none finished."""
    return Problem(
        type="urn:layerdrift:worker-lost",
        title="Worker lost",
        status=500,
        detail=f"{times} workers took this job and none finished it: they died, hung or were stopped. If memory is the "
        "cause, use fewer or shorter texts, smaller autoencoders, or a larger machine; otherwise post it again",
    )
