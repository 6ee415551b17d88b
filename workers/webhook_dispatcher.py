"""Sends webhooks in a thread of its own: a slow receiver holds up no job."""

from __future__ import annotations

from typing import ClassVar

from backends.deployment import Deployment
from backends.webhooks import WebhookSender
from workers.periodic import Periodic


class WebhookDispatcher(Periodic):
    """A thread that sends what is due. Every worker and maintenance have one; each webhook is taken by one of them."""

    name: ClassVar[str] = "webhook-dispatcher"
    seconds: ClassVar[float] = 1.0

    def __init__(self, deployment: Deployment) -> None:
        super().__init__()
        self._sender = WebhookSender(deployment.jobs, deployment.webhook_queue, deployment.webhooks)

    def look(self) -> None:
        self._sender.send_due(self.stopping)
