"""Holds a job's lease while it runs, and ends the process of a cancelled job that is stuck."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis

from backends.deployment import Deployment
from backends.jobs.records import Record
from backends.jobs.store import RecordStore
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from workers.devices import devices
from workers.lease import Lease
from workers.meter import Meter

logger = logging.getLogger(__name__)


@contextmanager
def leased(deployment: Deployment, records: RecordStore[Any], id_: str) -> Iterator[Lease | None]:
    """Holds the job's lease, renewed from a thread. None: somebody else holds it, or it was deleted.

    A job that was cancelled `cancel_seconds` ago and still goes on is stuck in something that never asks: it is
    ended with its process, which the pool replaces. A job that has told no progress for `stall_seconds` is taken from
    its process in the same way, and goes on elsewhere.
    """
    leases, settings = deployment.leases, deployment.settings
    seconds, patience = settings.lease_seconds, settings.cancel_seconds
    owner = uuid.uuid4().hex[:12]
    found = records.find(id_)
    if found is None or not leases.take(id_, owner, seconds):
        yield None
        return
    lease, ended = Lease(owner), threading.Event()
    meter = Meter(deployment.usage, found.tenant, "gpu" if devices() else "cpu")

    def renew() -> None:
        cancelled_at: float | None = None
        while not ended.wait(min(seconds, patience) / 3):
            try:
                if lease.pulse.silent_seconds > settings.stall_seconds:
                    _hand_on(deployment, id_, lease)
                if not leases.renew(id_, owner, seconds):
                    lease.lost.set()
                    return
                if cancelled_at is None and records.get(id_).cancel_requested:
                    cancelled_at = time.monotonic()
                if cancelled_at is not None and time.monotonic() - cancelled_at > patience:
                    _give_up(deployment, records, id_, owner)
                meter.tick()
            except (redis.RedisError, UnavailableError) as error:
                logger.warning("%s: could not renew the lease, or count its time: %s", id_, error)

    heart = threading.Thread(target=renew, name=f"lease-{id_}", daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        ended.set()
        heart.join()
        with suppress(redis.RedisError, UnavailableError):
            meter.tick()
        with suppress(redis.RedisError):  # it runs out by itself
            leases.release(id_, owner)


def _give_up(deployment: Deployment, records: RecordStore[Any], id_: str, owner: str) -> None:
    """Ends a cancelled job that is stuck, and this process with it; not where it has just come to its end."""
    ended = False

    def end(found: Record) -> Record:
        nonlocal ended
        ended = not found.status.final
        return found.ended(Status.CANCELLED) if ended else found

    records.update(id_, end)
    if ended:
        logger.warning("%s: cancelled but still running; ending its process", id_)
        deployment.leases.release(id_, owner)
        end_process()


def _hand_on(deployment: Deployment, id_: str, lease: Lease) -> None:
    """Ends this process with a job that hangs, in a kernel or a read: the next worker takes it up."""
    logger.error("%s: no progress for %.0f s; ending its process", id_, lease.pulse.silent_seconds)
    lease.lost.set()
    with suppress(redis.RedisError):
        deployment.leases.release(id_, lease.owner)
    end_process()


def end_process() -> None:
    """At once, without the clean-up that a process with a broken device would hang in; the pool starts another."""
    os._exit(os.EX_SOFTWARE)
