"""What a deployment needs while no worker runs: `python -m workers.maintenance`, without torch.

Announces jobs that no worker holds, refills an emptied Redis, sends webhooks, keeps the usage of tenants and removes
what is older than it is to be kept. Workers do the same beside their jobs, so it is needed only where they are started
by demand; two of them do no harm.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType

from prometheus_client import start_http_server

from backends import retention
from backends.deployment import Deployment
from backends.observability import logs, metrics
from backends.settings import Settings
from workers.periodic import Periodic
from workers.reconciler import Reconciler
from workers.retention_sweep import RetentionSweep
from workers.usage_keeper import UsageKeeper
from workers.webhook_dispatcher import WebhookDispatcher

logger = logging.getLogger(__name__)


def dry_run(deployment: Deployment) -> None:
    """Prints what retention would remove now, a line for each and the sum."""
    found = list(retention.expired(deployment))
    for one in found:
        print(retention.described(one))
    print(f"{len(found)} would be removed, {sum(one.bytes for one in found):,} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs until SIGTERM or Ctrl-C; with `--dry-run` says what retention would remove, and removes nothing."""
    parser = argparse.ArgumentParser(prog="python -m workers.maintenance", description="what needs no worker")
    parser.add_argument("--dry-run", action="store_true", help="say what retention would remove, and end")
    given = parser.parse_args(arguments)
    settings = Settings()
    logs.configure(settings.log_format)
    deployment = Deployment.connect(settings)
    if given.dry_run:
        dry_run(deployment)
        return
    deployment.probe_store_in_background()
    duties: list[Periodic] = [
        Reconciler(deployment),
        WebhookDispatcher(deployment),
        UsageKeeper(deployment),
        RetentionSweep(deployment),
    ]
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    for duty in duties:
        duty.start()
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port, registry=metrics.counted())
    logger.info("maintenance runs: %s", ", ".join(duty.name for duty in duties))
    ended.wait()
    for duty in duties:
        duty.stop()


if __name__ == "__main__":
    main()
