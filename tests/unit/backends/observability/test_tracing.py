"""Spans, as OpenTelemetry's own exporter in memory gets them. A collector gets them in tests/e2e/test_observability."""

from __future__ import annotations

import logging
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from backends.observability import tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans that have ended."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.fixture
def _no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def test_a_span_carries_its_attributes_under_the_products_name(exported: InMemorySpanExporter) -> None:
    with tracing.span("stage sae", job_id="an_x"):
        pass
    (span,) = exported.get_finished_spans()
    assert (span.name, dict(span.attributes or {})) == ("stage sae", {"layerdrift.job_id": "an_x"})


def test_a_job_continues_the_trace_of_its_request(exported: InMemorySpanExporter) -> None:
    with tracing.span("job", PARENT), tracing.span("stage"):
        inner = tracing.current()
    stage, job = exported.get_finished_spans()
    assert inner is not None
    assert inner.split("-")[1] == PARENT.split("-")[1]
    assert job.parent is not None
    assert stage.parent is not None
    assert trace.format_span_id(job.parent.span_id) == PARENT.split("-")[2]
    assert stage.parent == job.context


@pytest.mark.parametrize("parent", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_job_without_a_usable_parent_begins_a_trace(exported: InMemorySpanExporter, parent: str | None) -> None:
    with tracing.span("job", parent):
        pass
    (span,) = exported.get_finished_spans()
    assert span.parent is None


def test_an_exception_marks_its_span_as_failed_and_goes_on(exported: InMemorySpanExporter) -> None:
    with pytest.raises(RuntimeError, match="it broke"), tracing.span("job"):
        raise RuntimeError("it broke")
    (span,) = exported.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert "exception" in [event.name for event in span.events]


def test_the_current_span_is_what_a_header_carries_and_there_is_none_outside(exported: InMemorySpanExporter) -> None:
    assert tracing.current() is None
    with tracing.span("request"):
        carried = tracing.current()
    (span,) = exported.get_finished_spans()
    context = span.context
    ids = f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}-"
    assert carried is not None
    assert carried.startswith(ids)
    assert tracing.current() is None


@pytest.mark.usefixtures("_no_collector")
def test_without_a_collector_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    tracing.configure("layerdrift-api")
    assert made == []


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize(("given", "shown"), [(None, "layerdrift-api"), ("mine", "mine")])
def test_a_collector_gets_spans_under_the_name_of_the_service_or_the_operators(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str | None, shown: str
) -> None:
    made: list[TracerProvider] = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    monkeypatch.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
    monkeypatch.setenv(name, "http://collector.invalid")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    if given is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", given)
    tracing.configure("layerdrift-api")
    (provider,) = made
    assert provider.resource.attributes["service.name"] == shown
    provider.shutdown()


@pytest.mark.usefixtures("_no_collector")
def test_a_provider_that_is_there_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.invalid")
    tracing.configure("layerdrift-api")
    assert made == []


@pytest.mark.usefixtures("_no_collector")
def test_a_collector_without_the_extra_is_warned_of_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.invalid")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING, "backends.observability.tracing"):
        tracing.configure("layerdrift-api")
    assert "requires layerdrift-server[otel]" in caplog.text
