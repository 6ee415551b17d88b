"""Runs the API: `python -m service.main`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

from backends.api_keys import is_loopback
from backends.deployment import Deployment
from backends.observability import logs
from backends.settings import Settings
from layerdrift.contract.errors import LayerdriftError
from service.app import build_server
from service.keys import ensure_admin
from service.middleware.connections import MAX_CONNECTIONS, BoundedProtocol

logger = logging.getLogger(__name__)


def _stop_on_sigterm() -> None:
    """SIGTERM reaches LitServe's main process alone, which stops its children on KeyboardInterrupt only."""
    main_process = os.getpid()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if os.getpid() == main_process:
            raise KeyboardInterrupt
        sys.exit(0)  # a forked API process, which has stopped already

    signal.signal(signal.SIGTERM, interrupt)


def _check_access(settings: Settings) -> None:
    """Makes the first key where the settings name one; without any, the API may only be reached from this machine.

    Raises:
        ValueError: there is no key, and the address to bind to can be reached from elsewhere.
    """
    store = Deployment.connect(settings).keys
    if settings.admin_key is not None:
        ensure_admin(store, settings.admin_key.get_secret_value())
    if store.needed() or settings.oidc_issuer is not None:
        return
    if not is_loopback(settings.host):
        raise ValueError(
            f"LAYERDRIFT_HOST is {settings.host}, and there is no API key: anybody could use it. Set "
            "LAYERDRIFT_ADMIN_KEY, or make a key with python -m service.keys create"
        )
    logger.warning("there is no API key: everybody on this machine may use the API, and nobody else can reach it")


def main() -> None:
    """Runs the API until SIGTERM or Ctrl-C."""
    settings = Settings()
    logs.configure(settings.log_format)
    _stop_on_sigterm()
    try:
        _check_access(settings)
    except (LayerdriftError, ValueError) as error:
        sys.exit(f"the API does not start: {error}")
    server = build_server(settings)
    server.run(
        host=settings.host,
        port=settings.port,
        num_api_servers=1,
        generate_client_file=False,
        access_log=False,
        http=BoundedProtocol,
        limit_concurrency=MAX_CONNECTIONS,
    )


if __name__ == "__main__":
    main()
