"""Prometheus metrics. Each process counts into its own files; a scrape adds them up.

Names and labels: docs/operations.md. Nothing here is needed for a job; without a folder for the files every process
would report itself alone.
"""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, multiprocess

from backends.jobs.listing import JobListing
from backends.jobs.workers import WorkerRegistry
from backends.queue import QUEUES, JobQueue
from backends.usage import UsageStore, month_of
from layerdrift.contract.analysis import Status

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client reads it when it is imported: it is set before the processes start."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STAGE_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)

REQUESTS = Counter("layerdrift_http_requests", "HTTP requests served", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "layerdrift_http_request_seconds", "Time until an HTTP response was sent", ["route"], buckets=_SECONDS
)
JOBS = Counter("layerdrift_jobs_ended", "Jobs that ended", ["status"])
ATTEMPTS = Counter("layerdrift_job_attempts", "Times a worker picked up a job")
STAGE_SECONDS = Histogram("layerdrift_stage_seconds", "Duration of completed stages", ["stage"], buckets=_STAGE_SECONDS)


def counted() -> CollectorRegistry:
    """All that the processes on this folder have counted, read anew whenever it is asked."""
    if not os.environ.get(FOLDER_VARIABLE):
        return REGISTRY
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def standing(jobs: JobListing, workers: WorkerRegistry, queue: JobQueue, usage: UsageStore) -> CollectorRegistry:
    """How things stand in the whole deployment now: jobs by status, what waits, who listens."""
    registry = CollectorRegistry()
    by_status = Gauge("layerdrift_jobs", "Jobs with this status, all tenants", ["status"], registry=registry)
    for status in Status:
        by_status.labels(status.value).set(jobs.count(status))
    waiting = Gauge("layerdrift_queue_waiting", "Announced jobs that no worker has picked up", registry=registry)
    waiting.set(queue.waiting())
    length = Gauge("layerdrift_queue_length", "Announced jobs that wait, by queue", ["queue"], registry=registry)
    listening = Gauge("layerdrift_workers", "Listening workers", ["queue"], registry=registry)
    for name in QUEUES:
        length.labels(name).set(queue.waiting_in(name))
        listening.labels(name).set(workers.listening(name))
    used = Gauge("layerdrift_tenant_seconds", "Work of this month", ["tenant", "device"], registry=registry)
    stored = Gauge("layerdrift_tenant_stored_bytes", "Size of the objects in the bucket", ["tenant"], registry=registry)
    for tenant in usage.tenants():
        for device, seconds in usage.seconds(tenant, month_of())._asdict().items():
            used.labels(tenant, device).set(seconds)
        stored.labels(tenant).set(usage.stored_bytes(tenant) or 0)
    return registry
