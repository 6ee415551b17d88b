"""Sends webhooks from a worker's main process, in a thread of its own: a slow receiver holds up no job."""

from __future__ import annotations

import logging
import threading

import redis

from backends.deployment import Deployment
from backends.webhooks import WebhookSender
from layerdrift.contract.errors import LayerdriftError

EVERY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class WebhookDispatcher:
    """A thread that sends what is due. Every worker has one; each webhook is taken by one of them."""

    def __init__(self, deployment: Deployment) -> None:
        self._sender = WebhookSender(deployment.jobs, deployment.webhook_queue, deployment.webhooks)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook-dispatcher", daemon=True)

    def start(self) -> None:
        """Begins at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the try that is being made; what is left is due for others."""
        self._stopped.set()
        self._thread.join(timeout=EVERY_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_SECONDS):
            try:
                self._sender.send_due(self._stopped.is_set)
            except (redis.RedisError, LayerdriftError) as error:
                logger.warning("could not check for due webhooks: %s", error)
