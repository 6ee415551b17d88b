"""The stores of a deployment in memory: records, leases, objects and what else a worker asks, without a server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import redis

from backends.deployment import Deployment
from backends.estimates.capacity import Capacity
from backends.estimates.rates import Rates
from backends.jobs.leases import LeaseStore
from backends.jobs.records import JobRecord, Record, StudyRecord
from backends.jobs.store import JobStore, RecordStore, RecordT, StudyStore
from backends.jobs.workers import WorkerRegistry
from backends.queue import JobQueue, QueueName
from backends.settings import Settings
from backends.storage.blobs import BlobInfo, BlobStore
from backends.storage.key_names import Owned
from backends.storage.report_cache import ReportCache, ReportFormat
from backends.usage import DEVICES, Device, Seconds, UsageStore
from layerdrift.contract.analysis import StageName, Status
from layerdrift.contract.errors import NotFoundError, UnavailableError


class MemoryBlobs(BlobStore):
    """A bucket; while `away` is set it cannot be reached."""

    def __init__(self) -> None:
        super().__init__(None, "bucket")
        self.objects: dict[str, bytes] = {}
        self.written: list[str] = []
        self.away = False

    def put(self, key: str, body: bytes, media_type: str) -> None:
        self._reach()
        self.written.append(key)
        self.objects[key] = body

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes(), "")

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._reach()
        if key not in self.objects:
            raise NotFoundError(f"{key} does not exist")
        return self.objects[key][start:] if length is None else self.objects[key][start : start + length]

    def get_file(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def delete(self, key: str) -> None:
        self._reach()
        self.objects.pop(key, None)

    def list(self, prefix: str) -> list[BlobInfo]:
        self._reach()
        return [BlobInfo(key, len(body), "") for key, body in sorted(self.objects.items()) if key.startswith(prefix)]

    def _reach(self) -> None:
        if self.away:
            raise UnavailableError("S3 could not be reached")


class MemoryRecords(RecordStore[RecordT]):
    """Records of one kind; `fails` is raised by every update while it is set."""

    def __init__(self, *records: RecordT) -> None:
        self.records = {record.id: record for record in records}
        self.updates = 0
        self.fails: Exception | None = None

    def submit(self, record: RecordT, admit: Callable[[], None] = lambda: None) -> tuple[RecordT, bool]:
        found = self.records.get(record.id)
        if found is not None and found.status not in (Status.FAILED, Status.CANCELLED):
            return found, False
        admit()
        self.records[record.id] = record
        return record, True

    def find(self, id_: str, tenant: str | None = None) -> RecordT | None:
        record = self.records.get(id_)
        return record if record is not None and tenant in (None, record.tenant) else None

    def find_all(self, ids: Sequence[str], tenant: str) -> list[RecordT | None]:
        return [self.find(id_, tenant) for id_ in ids]

    def update(self, id_: str, change: Callable[[RecordT], RecordT]) -> RecordT:
        if self.fails is not None:
            raise self.fails
        self.updates += 1
        self.records[id_] = change(self.get(id_))
        return self.records[id_]

    def open_ids(self) -> list[str]:
        return sorted(record.id for record in self.records.values() if not record.status.final)

    def restore(self) -> int:
        return 0


class MemoryJobs(MemoryRecords[JobRecord], JobStore):
    """Job records."""


class MemoryStudies(MemoryRecords[StudyRecord], StudyStore):
    """Study records."""

    def remove(self, record: StudyRecord) -> None:
        del self.records[record.id]


class MemoryLeases(LeaseStore):
    """Leases that do not run out."""

    def __init__(self) -> None:
        self.holders: dict[str, str] = {}
        self.announced: set[str] = set()
        self.turns: dict[str, float] = {}
        self.away = False

    def note_turn(self, tenant: str) -> None:
        self.turns[tenant] = len(self.turns) + 1.0

    def last_turns(self, tenants: Collection[str]) -> dict[str, float]:
        return {tenant: self.turns.get(tenant, 0.0) for tenant in tenants}

    def take(self, analysis_id: str, owner: str, seconds: float) -> bool:
        return self.holders.setdefault(analysis_id, owner) == owner

    def renew(self, analysis_id: str, owner: str, seconds: float) -> bool:
        self._reach()
        return self.holders.get(analysis_id) == owner

    def release(self, analysis_id: str, owner: str) -> None:
        self._reach()
        if self.holders.get(analysis_id) == owner:
            del self.holders[analysis_id]

    def held(self, analysis_id: str) -> bool:
        return analysis_id in self.holders

    def claim_announcement(self, analysis_id: str, seconds: float) -> bool:
        first = analysis_id not in self.announced
        self.announced.add(analysis_id)
        return first

    def _reach(self) -> None:
        if self.away:
            raise redis.ConnectionError("Redis could not be reached")


class MemoryReports(ReportCache):
    """Preliminary reports in a dictionary; finished ones go to the bucket alone."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.early: dict[tuple[Owned, ReportFormat], bytes] = {}
        self.cached: list[ReportFormat] = []
        self.away = False

    def put(self, owned: Owned, format: ReportFormat, body: bytes) -> None:
        self._blobs.put(f"reports/{owned.id}/{format}", body, "")
        self.cached.append(format)

    def put_preliminary(self, owned: Owned, format: ReportFormat, body: bytes) -> None:
        if self.away:
            raise redis.ConnectionError("Redis could not be reached")
        self.early[owned, format] = body

    def forget_preliminary(self, owned: Owned) -> None:
        self.early = {key: body for key, body in self.early.items() if key[0] != owned}


class MemoryRates(Rates):
    """Pace of stages: an operation takes a second; what was recorded is kept."""

    def __init__(self) -> None:
        self.recorded: dict[StageName, float] = {}
        self.away = False

    def seconds(self, operations: Mapping[StageName, float]) -> dict[StageName, float]:
        if self.away:
            raise redis.ConnectionError("Redis could not be reached")
        return dict(operations)

    def record(self, stage: StageName, operations: float, seconds: float) -> None:
        self.recorded[stage] = seconds


class MemoryWorkers(WorkerRegistry):
    """Live workers by name, with what they listen to."""

    def __init__(self) -> None:
        self.live: dict[str, list[str]] = {}
        self.told: dict[str, Capacity] = {}

    def announce(self, name: str, queues: Iterable[str], seconds: float, capacity: Capacity | None = None) -> None:
        self.live[name] = list(queues)
        if capacity is not None:
            self.told[name] = capacity

    def withdraw(self, name: str, queues: Iterable[str]) -> None:
        self.live.pop(name, None)


class MemoryQueue(JobQueue):
    """Ids that were announced; `ahead` of them wait."""

    def __init__(self) -> None:
        self.announced: list[str] = []
        self.ahead = 0

    def announce(self, record: Record) -> None:
        self.announced.append(record.id)

    def waiting_in(self, name: QueueName) -> int:
        return self.ahead if name == "cpu" else 0


class MemoryUsage(UsageStore):
    """Seconds by tenant and device, whatever the month; `stored` are bytes by tenant."""

    def __init__(self) -> None:
        self.counted: dict[tuple[str, str], float] = {}
        self.stored: dict[str, int] = {}

    def add(self, tenant: str, device: Device, seconds: float, now: float | None = None) -> None:
        self.counted[tenant, device] = self.counted.get((tenant, device), 0.0) + seconds

    def seconds(self, tenant: str, month: str) -> Seconds:
        return Seconds(*(self.counted.get((tenant, device), 0.0) for device in DEVICES))

    def stored_bytes(self, tenant: str) -> int | None:
        return self.stored.get(tenant)

    def tenants(self) -> list[str]:
        return sorted(self.stored)


class MemoryDeployment:
    """The stores together. `given` is the same as a worker takes it; other parts of a deployment are not there."""

    def __init__(self, home: Path, *records: JobRecord, **settings: Any) -> None:
        self.settings = Settings(home=home).model_copy(update=settings)
        self.blobs = MemoryBlobs()
        self.jobs = MemoryJobs(*records)
        self.studies = MemoryStudies()
        self.leases = MemoryLeases()
        self.reports = MemoryReports(self.blobs)
        self.rates = MemoryRates()
        self.usage = MemoryUsage()
        self.workers = MemoryWorkers()
        self.queue = MemoryQueue()

    @property
    def given(self) -> Deployment:
        return cast(Deployment, SimpleNamespace(**vars(self)))
