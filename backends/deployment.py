"""One process's connections to the servers behind the service, made in one place from the settings."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from backends.api_keys import KeyStore
from backends.catalogue import Catalogue
from backends.estimates.rates import Rates
from backends.jobs.idempotency import IdempotencyKeys
from backends.jobs.leases import LeaseStore
from backends.jobs.listing import JobListing, RecordListing
from backends.jobs.records import StudyRecord
from backends.jobs.store import JobStore, StudyStore
from backends.jobs.workers import WorkerRegistry
from backends.queue import JobQueue, celery_app
from backends.redis_connection import connect_redis
from backends.sessions import SessionStore
from backends.settings import Settings
from backends.sources.pinning import Sources
from backends.storage.artifacts import ArtifactStore
from backends.storage.blobs import BlobStore
from backends.storage.report_cache import ReportCache
from backends.storage.uploads import UploadStore, WaitingUploads
from backends.usage import UsageStore
from backends.webhooks import WebhookQueue, WebhookTargets
from layerdrift.contract.errors import LayerdriftError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deployment:
    """Records, objects, reports, uploads, keys, the queue and the sources of one deployment."""

    settings: Settings
    blobs: BlobStore
    jobs: JobStore
    listing: JobListing
    studies: StudyStore
    study_listing: RecordListing[StudyRecord]
    leases: LeaseStore
    workers: WorkerRegistry
    reports: ReportCache
    queue: JobQueue
    sources: Sources
    uploads: UploadStore
    waiting_uploads: WaitingUploads
    keys: KeyStore
    sessions: SessionStore
    artifacts: ArtifactStore
    idempotency: IdempotencyKeys
    webhooks: WebhookTargets
    webhook_queue: WebhookQueue
    rates: Rates
    usage: UsageStore
    catalogue: Catalogue

    @classmethod
    def connect(cls, settings: Settings) -> Deployment:
        """Everything that the settings name; nothing is sent yet. One for each process: sockets survive no fork."""
        blobs = BlobStore.connect(settings)
        client = connect_redis(settings)
        jobs, studies, workers = JobStore(client, blobs), StudyStore(client, blobs), WorkerRegistry(client)
        listing = JobListing(client, jobs)
        uploads = UploadStore(blobs, settings.max_upload_bytes)
        return cls(
            settings=settings,
            blobs=blobs,
            jobs=jobs,
            listing=listing,
            studies=studies,
            study_listing=RecordListing(client, studies),
            leases=LeaseStore(client),
            workers=workers,
            reports=ReportCache(client, blobs, settings.report_cache_seconds),
            queue=JobQueue(celery_app(settings), client, workers, settings.scaled_queues),
            sources=Sources(settings, blobs),
            uploads=uploads,
            waiting_uploads=WaitingUploads(client, uploads),
            keys=KeyStore(client, blobs, settings.host),
            sessions=SessionStore(client),
            artifacts=ArtifactStore(blobs),
            idempotency=IdempotencyKeys(client),
            webhooks=WebhookTargets(settings),
            webhook_queue=WebhookQueue(client),
            rates=Rates(client),
            usage=UsageStore(client, blobs),
            catalogue=Catalogue(settings, blobs, listing, uploads),
        )

    def probe_store(self) -> bool | None:
        """Whether S3 has conditional writes; logs a warning where it has none. None where S3 cannot be asked now."""
        try:
            found = self.blobs.supports_conditional_writes()
        except LayerdriftError as error:
            logger.warning("could not check yet whether S3 supports conditional writes: %s", error.detail)
            return None
        if not found:
            logger.warning(
                "this S3 server does not support conditional writes (If-None-Match): identical requests create a "
                "single job only while all API servers share one Redis; see docs/operations.md"
            )
        return found

    def probe_store_in_background(self) -> None:
        """Does `probe_store` in a thread: a start waits for no S3 that is unavailable."""
        threading.Thread(target=self.probe_store, name="store-probe", daemon=True).start()
