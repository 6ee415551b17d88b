"""Holds a job's lease while it runs, and ends the process of a cancelled job that is stuck."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from workers.lease import Lease

logger = logging.getLogger(__name__)


@contextmanager
def leased(deployment: Deployment, analysis_id: str) -> Iterator[Lease | None]:
    """Holds the job's lease, renewed from a thread. None: somebody else holds it.

    A job that was cancelled `cancel_seconds` ago and still goes on is stuck in something that never asks: it is
    ended with its process, which the pool replaces. A job that has told no progress for `stall_seconds` is taken from
    its process in the same way, and goes on elsewhere.
    """
    jobs, leases, settings = deployment.jobs, deployment.leases, deployment.settings
    seconds, patience = settings.lease_seconds, settings.cancel_seconds
    owner = uuid.uuid4().hex[:12]
    if not leases.take(analysis_id, owner, seconds):
        yield None
        return
    lease, ended = Lease(owner), threading.Event()

    def renew() -> None:
        cancelled_at: float | None = None
        while not ended.wait(min(seconds, patience) / 3):
            try:
                if lease.pulse.silent_seconds > settings.stall_seconds:
                    _hand_on(deployment, analysis_id, lease)
                if not leases.renew(analysis_id, owner, seconds):
                    lease.lost.set()
                    return
                if cancelled_at is None and jobs.get(analysis_id).cancel_requested:
                    cancelled_at = time.monotonic()
                if cancelled_at is not None and time.monotonic() - cancelled_at > patience:
                    _give_up(deployment, analysis_id, owner)
            except (redis.RedisError, UnavailableError) as error:
                logger.warning("%s: could not renew the lease: %s", analysis_id, error)

    heart = threading.Thread(target=renew, name=f"lease-{analysis_id}", daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        ended.set()
        heart.join()
        with suppress(redis.RedisError):  # it runs out by itself
            leases.release(analysis_id, owner)


def _give_up(deployment: Deployment, analysis_id: str, owner: str) -> None:
    """Ends a cancelled job that is stuck, and this process with it; not where it has just come to its end."""
    ended = False

    def end(found: JobRecord) -> JobRecord:
        nonlocal ended
        ended = not found.status.final
        return found.ended(Status.CANCELLED) if ended else found

    deployment.jobs.update(analysis_id, end)
    if ended:
        logger.warning("%s: cancelled but still running; ending its process", analysis_id)
        deployment.leases.release(analysis_id, owner)
        end_process()


def _hand_on(deployment: Deployment, analysis_id: str, lease: Lease) -> None:
    """Ends this process with a job that hangs, in a kernel or a read: the next worker takes it up."""
    logger.error("%s: no progress for %.0f s; ending its process", analysis_id, lease.pulse.silent_seconds)
    lease.lost.set()
    with suppress(redis.RedisError):
        deployment.leases.release(analysis_id, lease.owner)
    end_process()


def end_process() -> None:
    """At once, without the clean-up that a process with a broken device would hang in; the pool starts another."""
    os._exit(os.EX_SOFTWARE)
