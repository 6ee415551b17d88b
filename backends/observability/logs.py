"""Log lines as JSON, one object a line, with the ids of the request or the job that they belong to."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor

from layerdrift.contract.plain import visible

_QUIET = ("httpx", "httpcore", "botocore", "boto3", "urllib3", "s3transfer", "celery.redirected")

bind = structlog.contextvars.bind_contextvars
"""Adds fields to every line that this thread or task logs from now on."""

bound = structlog.contextvars.bound_contextvars
"""The same, as a context manager."""


def _one_line(_: object, __: str, event: EventDict) -> EventDict:
    """Whatever was quoted in an event, it begins no line of its own; a traceback has as many as it has."""
    return {
        name: visible(value) if isinstance(value, str) and name != "exception" else value
        for name, value in event.items()
    }


def configure(form: str) -> None:
    """Sends everything that is logged to standard error; form: `json`, or `plain` for people."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    render: list[Processor] = [structlog.processors.JSONRenderer()]
    if form != "json":
        render = [_one_line, structlog.dev.ConsoleRenderer()]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
