"""What others are told of a job: its trace, by a collector that takes what is really sent, and a worker's metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deploy.embedded.ports import LOOPBACK, choose
from deploy.embedded.stack import Stack
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.builders.texts import make_texts

SECONDS = 30


class Span(NamedTuple):
    service: str
    name: str
    trace: bytes
    id: bytes
    parent: bytes
    attributes: dict[str, str]


class Collector:
    """An OTLP collector over HTTP that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer((LOOPBACK, 0), Handler)

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            service = {pair.key: pair.value.string_value for pair in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {pair.key: pair.value.string_value for pair in span.attributes}
                    ids = (span.trace_id, span.span_id, span.parent_span_id)
                    self.spans.append(Span(service, span.name, *ids, attributes))


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.mark.slow
def test_a_request_and_its_job_are_one_trace_and_the_worker_counts_it(
    collector: Collector,
    start_stack: Callable[..., Stack],
    base_folder: Path,
    noised_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{LOOPBACK}:{collector.server.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    request = AnalysisRequest.model_validate(
        {
            "base": {"uri": base_folder.as_uri()},
            "tuned": {"uri": noised_folder.as_uri()},
            "dataset": {"inline": {"texts": make_texts(60)}},
            "analysis": {"sae": None, "grafts": False},
        }
    )
    port = choose({"metrics": 0})["metrics"]
    with start_stack(tmp_path, LAYERDRIFT_METRICS_PORT=str(port)) as stack, Client(stack.url) as client:
        submitted = client.submit(request)
        client.wait(submitted.id, timeout=120)
        deadline = time.monotonic() + SECONDS
        while not any(span.name == "analysis" for span in collector.spans) and time.monotonic() < deadline:
            time.sleep(0.1)
        told = httpx.get(f"http://{LOOPBACK}:{port}/metrics").text
    assert 'layerdrift_jobs_ended_total{status="succeeded"} 1.0' in told
    assert 'layerdrift_stage_seconds_count{stage="report"} 1.0' in told
    posted = next(span for span in collector.spans if span.name == "POST /v1/analyses")
    job = next(span for span in collector.spans if span.name == "analysis")
    stages = [span for span in collector.spans if span.name.startswith("stage ")]
    assert (posted.service, job.service) == ("layerdrift-api", "layerdrift-worker")
    assert job.attributes == {"layerdrift.job_id": submitted.id, "layerdrift.attempt": "1"}
    assert job.trace == posted.trace
    assert job.parent in {span.id for span in collector.spans if span.service == "layerdrift-api"}
    assert [span.name for span in stages] == [
        f"stage {name}" for name in "resolve extract compare causal report".split()
    ]
    assert {(span.trace, span.parent) for span in stages} == {(job.trace, job.id)}
