"""One process's connections to the servers behind the service, made in one place from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from layerdrift.backends.blobs import BlobStore
from layerdrift.backends.cache import ReportCache
from layerdrift.backends.jobs import JobStore, connect_redis
from layerdrift.backends.queue import JobQueue, celery_app
from layerdrift.backends.settings import Settings
from layerdrift.backends.sources import Sources


@dataclass(frozen=True)
class Deployment:
    """Records, objects, reports, the queue and the sources of one deployment."""

    settings: Settings
    blobs: BlobStore
    jobs: JobStore
    reports: ReportCache
    queue: JobQueue
    sources: Sources

    @classmethod
    def connect(cls, settings: Settings) -> Deployment:
        """Everything that the settings name; nothing is sent yet. One for each process: sockets survive no fork."""
        blobs = BlobStore.connect(settings)
        client = connect_redis(settings)
        return cls(
            settings=settings,
            blobs=blobs,
            jobs=JobStore(client, blobs),
            reports=ReportCache(client, blobs, settings.report_cache_seconds),
            queue=JobQueue(celery_app(settings), client),
            sources=Sources(settings, blobs),
        )
