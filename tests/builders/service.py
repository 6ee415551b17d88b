"""A deployment in memory as the routes of the API ask it, and an app of some routes in front of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from backends.api_keys import ANYBODY, KeyStore, new_key
from backends.deployment import Deployment
from backends.jobs.idempotency import Answered, IdempotencyKeys
from backends.jobs.listing import JobListing, RecordListing
from backends.jobs.records import EVERY, JobRecord, Wanted
from backends.jobs.store import RecordT
from backends.jobs.workers import WorkerRegistry
from backends.settings import Settings
from backends.storage.artifacts import ArtifactStore
from backends.storage.key_names import Owned
from backends.storage.report_cache import CachedReport, ReportCache, ReportFormat
from backends.storage.uploads import UploadStore, WaitingUploads
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import (
    ConflictError,
    LayerdriftError,
    NotFoundError,
    RateError,
    UnauthorizedError,
    UnavailableError,
)
from layerdrift.contract.key import ApiKey, Scope
from service.http import problems
from service.http.query_parameters import ONLY_KNOWN_PARAMETERS
from tests.builders.stores import MemoryBlobs, MemoryJobs, MemoryQueue, MemoryRecords, MemoryStudies, MemoryUsage


class LinkedBlobs(MemoryBlobs):
    """A bucket that gives links, and can say whether it has conditional writes."""

    def check(self) -> None:
        self._reach()

    def link(self, key: str, seconds: int) -> str:
        return f"https://s3.test/{key}?seconds={seconds}"


class ListedJobs(MemoryJobs):
    """Job records that can be removed; while `away` is set Redis does not answer."""

    away = False

    def remove(self, record: JobRecord) -> None:
        del self.records[record.id]

    def check(self) -> None:
        if self.away:
            raise UnavailableError("Redis could not be reached")


class MemoryRecordListing(RecordListing[RecordT]):
    """Lists of records; a cursor is the id that a page ended with. `asked` is what the last page was to show."""

    def __init__(self, store: MemoryRecords[RecordT]) -> None:
        self._memory = store
        self.asked = EVERY

    def page(
        self, tenant: str, limit: int, cursor: str | None, wanted: Wanted = EVERY
    ) -> tuple[list[RecordT], str | None]:
        self.asked = wanted
        own = [record for record in self._memory.records.values() if record.tenant == tenant and wanted.admits(record)]
        own.sort(key=lambda record: record.created_at, reverse=True)
        start = 1 + [record.id for record in own].index(cursor) if cursor else 0
        shown = own[start : start + limit]
        return shown, shown[-1].id if own[start + limit :] else None

    def resolve(self, tenant: str, reference: str) -> str:
        for record in self.page(tenant, 100, None)[0]:
            if reference in ("latest", record.id, record.title):
                return record.id
        raise NotFoundError(f"no {self._memory.noun} has the id or name {reference!r}")


class MemoryListing(MemoryRecordListing[JobRecord], JobListing):
    """Lists of job records."""

    def count(self, status: Status) -> int:
        return sum(record.status is status for record in self._memory.records.values())

    def open_count(self, tenant: str) -> int:
        return sum(not one.status.final and one.tenant == tenant for one in self._memory.records.values())

    def queued_before(self, record: JobRecord) -> int:
        queued = (one for one in self._memory.records.values() if one.status is Status.QUEUED)
        return sum(one.created_at < record.created_at for one in queued)


class MemoryWaiting(WaitingUploads):
    """Uploads that wait for their bytes, by tenant and id; `full`: no more are admitted."""

    def __init__(self) -> None:
        self.waiting: set[tuple[str, str]] = set()
        self.full = False

    def admit(self, tenant: str) -> None:
        if self.full:
            raise RateError("200 uploads are still waiting for their bytes", 60)

    def put(self, tenant: str, upload_id: str) -> None:
        self.waiting.add((tenant, upload_id))

    def forget(self, tenant: str, upload_id: str) -> None:
        self.waiting.discard((tenant, upload_id))


class StoredReports(ReportCache):
    """Reports by analysis and format; `hit`: they came from Redis."""

    def __init__(self) -> None:
        self.finished: dict[tuple[Owned, ReportFormat], bytes] = {}
        self.early: dict[tuple[Owned, ReportFormat], bytes] = {}
        self.hit = True

    def get(self, owned: Owned, format: ReportFormat) -> CachedReport:
        return CachedReport(self.finished[owned, format], self.hit)

    def preliminary(self, owned: Owned, format: ReportFormat) -> bytes | None:
        return self.early.get((owned, format))

    def forget(self, owned: Owned) -> None:
        self.finished = {key: body for key, body in self.finished.items() if key[0] != owned}


class MemoryKeys(KeyStore):
    """API keys by their secrets; without any, anybody may do everything. `counted`: ids of keys that asked."""

    def __init__(self) -> None:
        self.by_secret: dict[str, ApiKey] = {}
        self.counted: list[str] = []
        self.refused: LayerdriftError | None = None

    def create(self, key: ApiKey, secret: str | None = None, maker: ApiKey | None = None) -> str:
        secret = secret or f"ld_secret_{len(self.by_secret)}"
        self.by_secret[secret] = key
        return secret

    def revoke(self, key_id: str, maker: ApiKey | None = None) -> None:
        if len(self.by_secret) == 1:
            raise ConflictError("this is the last key, and others can reach the service: create another key first")
        found = [
            secret
            for secret, key in self.by_secret.items()
            if key.id == key_id and (maker is None or maker.tenant == key.tenant)
        ]
        if not found:
            raise NotFoundError(f"there is no key {key_id}")
        del self.by_secret[found[0]]

    def all(self) -> list[ApiKey]:
        return list(self.by_secret.values())

    def find(self, secret: str | None) -> ApiKey:
        if not self.by_secret:
            return ANYBODY
        if secret not in self.by_secret:
            raise UnauthorizedError("unknown API key" if secret else "an API key is required")
        return self.by_secret[secret]

    def needed(self) -> bool:
        return bool(self.by_secret)

    def knows(self, secret: str) -> bool:
        return secret in self.by_secret

    def count_request(self, key: ApiKey) -> None:
        if self.refused is not None:
            raise self.refused
        self.counted.append(key.id)


class MemoryIdempotency(IdempotencyKeys):
    """What Idempotency-Keys stood for; None: the first request with it is being carried out."""

    def __init__(self) -> None:
        self.claims: dict[tuple[str, str], tuple[str, Answered | None]] = {}

    def begin(self, tenant: str, key: str, body: str) -> Answered | None:
        before = self.claims.setdefault((tenant, key), (body, None))
        if before[1] is not None:
            return before[1]
        return None

    def finish(self, tenant: str, key: str, body: str, answered: Answered) -> None:
        self.claims[tenant, key] = body, answered

    def forget(self, tenant: str, key: str) -> None:
        del self.claims[tenant, key]


class ListeningWorkers(WorkerRegistry):
    """How many workers listen to each queue."""

    def __init__(self, **listening: int) -> None:
        self.by_queue = listening

    def listening(self, queue: str) -> int:
        return self.by_queue.get(queue, 0)


class NoSizes:
    """Sources whose files tell nothing, so that there is no estimate; they pin nothing."""

    def of(self, tenant: str) -> NoSizes:
        return self

    def sizes(self, *_: Any) -> None:
        raise NotFoundError("the files are gone")


class ServiceDeployment:
    """The stores together; other parts of a deployment are not there."""

    def __init__(self, *records: JobRecord, **settings: Any) -> None:
        self.settings = Settings().model_copy(update=settings)
        self.blobs = LinkedBlobs()
        self.jobs = ListedJobs(*records)
        self.listing = MemoryListing(self.jobs)
        self.studies = MemoryStudies()
        self.study_listing = MemoryRecordListing(self.studies)
        self.workers = ListeningWorkers(cpu=1)
        self.queue = MemoryQueue()
        self.reports = StoredReports()
        self.sources = NoSizes()
        self.artifacts = ArtifactStore(self.blobs)
        self.uploads = UploadStore(self.blobs, self.settings.max_upload_bytes)
        self.waiting_uploads = MemoryWaiting()
        self.keys = MemoryKeys()
        self.idempotency = MemoryIdempotency()
        self.usage = MemoryUsage()

    @property
    def given(self) -> Deployment:
        """The same as routes and use cases take it."""
        return cast(Deployment, SimpleNamespace(**vars(self)))

    def sign_in(self, http: TestClient, *scopes: Scope, tenant: str = "default", **limits: int) -> ApiKey:
        """Makes a key, and sends it with every request from now on."""
        key = new_key(tenant=tenant, scopes=scopes, **limits)
        http.headers["Authorization"] = f"Bearer {self.keys.create(key)}"
        return key


def api(deployment: ServiceDeployment, *routers: APIRouter) -> TestClient:
    """A client of an app that has these routes alone, in front of a deployment in memory."""
    app = FastAPI(docs_url=None, redoc_url=None)
    problems.install(app)
    for router in routers:
        app.include_router(router, dependencies=ONLY_KNOWN_PARAMETERS)
    app.state.deployment = deployment.given
    return TestClient(app, raise_server_exceptions=False)
