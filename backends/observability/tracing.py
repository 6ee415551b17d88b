"""OpenTelemetry: spans of jobs and stages beside those that FastAPI makes of requests, where a collector is named.

Nothing is sent, and nothing beyond OpenTelemetry's interface is needed, unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or
`..._TRACES_ENDPOINT`) is set; its other variables hold as its SDK reads them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace

_TURNED_ON_BY = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TRACEPARENT = "traceparent"

logger = logging.getLogger(__name__)


def configure(service: str) -> None:
    """Sends this process's spans to the collector, where one is named; `OTEL_SERVICE_NAME` goes before `service`."""
    if not any(os.environ.get(name) for name in _TURNED_ON_BY):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("%s is set, but exporting spans requires layerdrift-server[otel]", _TURNED_ON_BY[0])
        return
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    name = os.environ.get("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def current() -> str | None:
    """The span that this is called in, as a `traceparent` header writes it (W3C Trace Context); None: in none."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get(_TRACEPARENT)


@contextmanager
def span(name: str, parent: str | None = None, **attributes: str) -> Iterator[None]:
    """A span around a block, which an exception marks as failed.

    Args:
        parent: a `traceparent` from elsewhere; None: the span that this is called in.
        attributes: `job_id` becomes `layerdrift.job_id`.
    """
    context = propagate.extract({_TRACEPARENT: parent}) if parent else None
    given = {f"layerdrift.{key}": value for key, value in attributes.items()}
    with trace.get_tracer("layerdrift").start_as_current_span(name, context, attributes=given):
        yield
