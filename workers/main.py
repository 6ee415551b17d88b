"""The worker's Celery application: `celery -A workers.main worker`."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from celery.signals import setup_logging, worker_ready, worker_shutdown

from layerdrift.backends.deployment import Deployment
from layerdrift.backends.queue import celery_app
from layerdrift.backends.settings import Settings
from workers import tasks
from workers.reconciler import Reconciler

app = celery_app(Settings())
app.conf.imports = (tasks.__name__, __name__)  # what a spawned child of the pool is to know

_reconcilers: list[Reconciler] = []


@setup_logging.connect
def _log_plainly(**_: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")


@worker_ready.connect
def _begin(**_: Any) -> None:
    reconciler = Reconciler(Deployment.connect(Settings()), f"{socket.gethostname()}:{os.getpid()}")
    _reconcilers.append(reconciler)
    reconciler.start()


@worker_shutdown.connect
def _end(**_: Any) -> None:
    while _reconcilers:
        _reconcilers.pop().stop()
