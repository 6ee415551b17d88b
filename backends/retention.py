"""What is old enough to go, and its removal. Nothing goes that is queued or running, or that these name.

Records are read from S3, which has all of them: by an emptied Redis everything would look unused.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from backends import deletion
from backends.deployment import Deployment
from backends.jobs.records import JobRecord, NewerRecordError, Record, StudyRecord
from backends.jobs.store import RecordT
from backends.settings import Retention
from backends.storage import key_names
from backends.storage.blobs import BlobInfo, BlobStore
from backends.storage.uploads import SCHEME
from layerdrift.contract.errors import ConflictError, NotFoundError

Expiring = Literal["study", "analysis", "artifacts", "checkpoint", "upload", "parts"]

UNFINISHED_DAYS = 1.0
"""Parts of an object that was never made are kept so long: it may still be coming."""

audit = logging.getLogger("layerdrift.audit")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expired:
    """Something that goes, of so many bytes.

    id: of the analysis, study or upload; of parts their key and token. written: of an upload.
    """

    kind: Expiring
    tenant: str
    id: str
    bytes: int
    reason: str
    written: datetime | None = None


def expired(deployment: Deployment, now: datetime | None = None) -> Iterator[Expired]:
    """All that goes by the deployment's settings, tenant after tenant; what is not set expires nothing but parts."""
    now, rules = now or datetime.now(UTC), deployment.settings.retention
    for tenant in deployment.jobs.tenants() if rules != Retention() else ():
        try:
            yield from _of_tenant(deployment, rules, tenant, now)
        except NewerRecordError as error:
            logger.warning("retention leaves tenant %s alone: %s", tenant, error.detail)
    for one in deployment.blobs.unfinished():
        if now - one.begun > timedelta(days=UNFINISHED_DAYS):
            yield Expired("parts", "", json.dumps([one.key, one.token]), 0, f"begun {one.begun:%Y-%m-%d}, never made")


def remove(deployment: Deployment, one: Expired) -> bool:
    """Removes something, and writes it to the audit log; False where it is gone or in use by now."""
    owned = key_names.Owned(one.tenant, one.id)
    try:
        if one.kind == "study":
            deletion.delete_study(deployment, one.tenant, one.id)
        elif one.kind == "analysis":
            deletion.delete(deployment, one.tenant, one.id)
        elif one.kind == "upload":
            _remove_upload(deployment, one)
        elif one.kind == "parts":
            deployment.blobs.abort_parts(*json.loads(one.id))
        else:
            if not deployment.jobs.get(one.id, one.tenant).status.final:
                return False
            prefix = key_names.artifact_prefix if one.kind == "artifacts" else key_names.checkpoint_prefix
            deployment.blobs.delete_all(prefix(owned))
    except (NotFoundError, ConflictError):
        return False
    audit.info("retention removed %s", described(one))
    return True


def _remove_upload(deployment: Deployment, one: Expired) -> None:
    """ConflictError where somebody has sent the same again meanwhile."""
    record = deployment.blobs.list(key_names.upload_record(one.tenant, one.id))
    if any(blob.written != one.written for blob in record):
        raise ConflictError("it was written again")
    deployment.uploads.remove(one.tenant, one.id)


def described(one: Expired) -> str:
    """A line for people."""
    where = f" of tenant {one.tenant}" if one.tenant else ""
    return f"{one.kind} {one.id}{where}, {one.bytes:,} bytes: {one.reason}"


def _of_tenant(deployment: Deployment, rules: Retention, tenant: str, now: datetime) -> Iterator[Expired]:
    objects = deployment.blobs.list(key_names.tenant_prefix(tenant))
    jobs = list(_records(deployment.blobs, objects, key_names.record_prefix(key_names.JOBS, tenant), JobRecord))
    studies = list(_records(deployment.blobs, objects, key_names.record_prefix(key_names.STUDIES, tenant), StudyRecord))
    busy = _text(one for one in (*jobs, *studies) if not one.status.final)
    sizes = _Sizes(tenant, objects)
    old_studies = [one for one in studies if _older(one.finished_at, rules.analyses_days, now)]
    for study in old_studies:
        yield Expired("study", tenant, study.id, 0, _ended(study.finished_at))
    gone_studies = {study.id for study in old_studies}
    wanted = {member.analysis_id for one in studies if one.id not in gone_studies for member in one.awaited}
    loose = [one for one in jobs if one.status.final and one.id not in wanted and one.id not in busy]
    gone = {one.id: _ended(one.finished_at) for one in loose if _older(one.finished_at, rules.analyses_days, now)}
    gone |= _too_many(loose, gone, sizes, rules.stored_bytes)
    for id_, reason in gone.items():
        yield Expired("analysis", tenant, id_, sizes.of(id_), reason)
    left = [one for one in jobs if one.id not in gone]
    yield from _parts_of([one for one in left if one.status.final and one.id not in busy], rules, sizes, now)
    if rules.uploads_days is not None:
        named = _text((*left, *studies))
        yield from _uploads(named, rules.uploads_days, objects, sizes, now)


def _records(blobs: BlobStore, objects: list[BlobInfo], prefix: str, record_type: type[RecordT]) -> Iterator[RecordT]:
    """The records under a prefix, of those objects; NewerRecordError where this version cannot read one."""
    for blob in objects:
        if blob.key.startswith(prefix):
            with suppress(NotFoundError):  # deleted meanwhile
                yield record_type.stored(blobs.get(blob.key))


def _text(records: Iterable[Record]) -> str:
    """All that records name."""
    return "\n".join(one.model_dump_json() for one in records)


def _parts_of(left: list[JobRecord], rules: Retention, sizes: _Sizes, now: datetime) -> Iterator[Expired]:
    kinds: tuple[tuple[Expiring, str, float | None], ...] = (
        ("artifacts", "artifacts", rules.artifacts_days),
        ("checkpoint", "checkpoints", rules.checkpoints_days),
    )
    for kind, folder, days in kinds:
        for job in left:
            size = sizes.of(job.id, folder)
            if size and _older(job.finished_at, days, now):
                yield Expired(kind, job.tenant, job.id, size, _ended(job.finished_at))


def _uploads(named: str, days: float, objects: list[BlobInfo], sizes: _Sizes, now: datetime) -> Iterator[Expired]:
    for blob in objects:
        if not (blob.key.startswith(key_names.uploads_prefix(sizes.tenant)) and blob.key.endswith("/upload.json")):
            continue
        id_ = blob.key.split("/")[-2]
        if _older(blob.written, days, now) and SCHEME + id_ not in named:
            reason = f"no analysis names it, written {blob.written:%Y-%m-%d}"
            yield Expired("upload", sizes.tenant, id_, sizes.of(id_), reason, blob.written)


def _too_many(loose: list[JobRecord], gone: dict[str, str], sizes: _Sizes, most: int | None) -> dict[str, str]:
    """The oldest ones, until what is left is no more than that."""
    total = sizes.whole - sum(map(sizes.of, gone))
    found: dict[str, str] = {}
    for job in sorted(loose, key=lambda one: one.finished_at or one.created_at):
        if most is None or total <= most:
            break
        if job.id not in gone and sizes.of(job.id):
            found[job.id] = f"the tenant has {total:,} bytes, more than {most:,}; {_ended(job.finished_at)}"
            total -= sizes.of(job.id)
    return found


class _Sizes:
    """Bytes of what a tenant has: whole, by id, and by id in a folder."""

    def __init__(self, tenant: str, objects: list[BlobInfo]) -> None:
        self.tenant = tenant
        self.whole = sum(blob.size for blob in objects)
        self._found: Counter[tuple[str | None, str]] = Counter()
        for blob in objects:
            folder, _, rest = blob.key.removeprefix(key_names.tenant_prefix(tenant)).partition("/")
            name = rest.partition("/")[0].removesuffix(".json")
            self._found[folder, name] += blob.size
            self._found[None, name] += blob.size

    def of(self, id_: str, folder: str | None = None) -> int:
        return self._found[folder, id_]


def _older(time: datetime | None, days: float | None, now: datetime) -> bool:
    return time is not None and days is not None and now - time > timedelta(days=days)


def _ended(time: datetime | None) -> str:
    return f"ended {time:%Y-%m-%d}" if time is not None else "ended"
