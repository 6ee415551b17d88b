"""The worker's Celery application: `celery -A workers.main worker`."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

from billiard import current_process
from celery.signals import (
    celeryd_init,
    setup_logging,
    worker_process_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker import state as celery_state
from prometheus_client import start_http_server

from backends.deployment import Deployment
from backends.observability import logs, metrics
from backends.queue import QUEUES as ALL_QUEUES
from backends.queue import QueueName, celery_app
from backends.settings import Settings
from workers import tasks
from workers.cores import cores
from workers.devices import devices, take_one
from workers.idle_exit import IdleExit
from workers.periodic import Periodic
from workers.presence import Presence
from workers.reconciler import Reconciler
from workers.retention_sweep import RetentionSweep
from workers.usage_keeper import UsageKeeper
from workers.webhook_dispatcher import WebhookDispatcher

QUEUES: tuple[QueueName, ...] = ALL_QUEUES if devices() else ("cpu",)
"""What this worker listens to: both queues where there is a GPU."""

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # threads that wait sleep: another job on the machine needs the cores

app = celery_app(Settings())
app.select_queues(QUEUES)
app.conf.worker_concurrency = max(1, devices())  # a process for each device, and never a share of the CPU by default
app.conf.imports = (tasks.__name__, __name__)  # what a spawned child of the pool is to know

COLD_SHUTDOWN_SECONDS = 5.0

_helpers: list[Periodic] = []


@celeryd_init.connect
def _share_cores(options: dict[str, Any] | None = None, **_: Any) -> None:
    """Gives every process of the pool its share of the cores, before torch is loaded in any of them."""
    processes = int((options or {}).get("concurrency") or app.conf.worker_concurrency or os.cpu_count() or 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


@worker_process_init.connect
def _take_device(**_: Any) -> None:
    take_one(getattr(current_process(), "index", 0))


@setup_logging.connect
def _configure_logs(**_: Any) -> None:
    logs.configure(Settings().log_format)


@worker_ready.connect
def _begin(**_: Any) -> None:
    settings = Settings()
    deployment = Deployment.connect(settings)
    deployment.probe_store_in_background()
    _helpers.append(Presence(deployment, f"{socket.gethostname()}:{os.getpid()}", QUEUES))
    _helpers.append(Reconciler(deployment))
    _helpers.append(WebhookDispatcher(deployment))
    _helpers.append(UsageKeeper(deployment))
    _helpers.append(RetentionSweep(deployment))
    if settings.idle_seconds is not None:
        _helpers.append(IdleExit(settings.idle_seconds, _has_job, _end_after_job))
    for helper in _helpers:
        helper.start()
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port, registry=metrics.counted())


def _has_job() -> bool:
    """Whether a message was received whose job has not ended."""
    return bool(celery_state.reserved_requests)


def _end_after_job() -> None:
    """Celery's warm shutdown: what came in meanwhile is still done."""
    os.kill(os.getpid(), signal.SIGTERM)


@worker_shutting_down.connect
def _bound_cold_shutdown(how: str = "", **_: Any) -> None:
    """A cold shutdown asks Redis on its way out, and would wait for one that is gone for good."""
    if how == "Cold":
        end = threading.Timer(COLD_SHUTDOWN_SECONDS, _end_at_once)
        end.daemon = True
        end.start()


def _end_at_once() -> None:
    """Ends this process, and the pool's children with it where this one leads their group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


@worker_shutdown.connect
def _end(**_: Any) -> None:
    while _helpers:
        _helpers.pop().stop()
