"""One process's connections to the servers behind the service, made in one place from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from layerdrift.backends.access import KeyStore
from layerdrift.backends.artifacts import ArtifactStore
from layerdrift.backends.blobs import BlobStore
from layerdrift.backends.cache import ReportCache
from layerdrift.backends.idempotency import IdempotencyKeys
from layerdrift.backends.jobs import JobStore, connect_redis
from layerdrift.backends.queue import JobQueue, celery_app
from layerdrift.backends.settings import Settings
from layerdrift.backends.sources import Sources
from layerdrift.backends.uploads import UploadStore
from layerdrift.backends.webhooks import WebhookQueue, WebhookTargets


@dataclass(frozen=True)
class Deployment:
    """Records, objects, reports, uploads, keys, the queue and the sources of one deployment."""

    settings: Settings
    blobs: BlobStore
    jobs: JobStore
    reports: ReportCache
    queue: JobQueue
    sources: Sources
    uploads: UploadStore
    keys: KeyStore
    artifacts: ArtifactStore
    idempotency: IdempotencyKeys
    webhooks: WebhookTargets
    webhook_queue: WebhookQueue

    @classmethod
    def connect(cls, settings: Settings) -> Deployment:
        """Everything that the settings name; nothing is sent yet. One for each process: sockets survive no fork."""
        blobs = BlobStore.connect(settings)
        client = connect_redis(settings)
        jobs = JobStore(client, blobs)
        return cls(
            settings=settings,
            blobs=blobs,
            jobs=jobs,
            reports=ReportCache(client, blobs, settings.report_cache_seconds),
            queue=JobQueue(celery_app(settings), client, jobs),
            sources=Sources(settings, blobs),
            uploads=UploadStore(blobs, settings.max_upload_bytes),
            keys=KeyStore(client, blobs),
            artifacts=ArtifactStore(blobs),
            idempotency=IdempotencyKeys(client),
            webhooks=WebhookTargets(settings),
            webhook_queue=WebhookQueue(client),
        )
