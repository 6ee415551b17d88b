"""Every key in Redis and in the bucket, in one place. What belongs to a tenant has its name in it.

A name begins with what kind of key it is, and no two kinds begin alike: whatever a tenant is called, its keys are
nobody else's.
"""

from __future__ import annotations

from typing import NamedTuple

from backends.storage import artifact_names

KNOWN_TENANTS = "ld:tenants"
"""Set of the tenants that have had a job since Redis was last empty."""

API_KEYS_LOCK = "ld:keys-lock"
"""Lock: whoever changes API keys, or fills Redis with them."""

API_KEYS = "ld:keys"
"""Hash: API keys as JSON by the sha256 of the key."""

WEBHOOKS = "ld:webhooks"
"""Sorted set of ids whose webhooks are to be sent, by when to try next, seconds since 1970."""

TENANTS = "tenants/"
API_KEY_OBJECTS = "keys/"
KEYS_NEEDED = "access/keys-needed.json"
"""Object: there was a key, and nobody took the last one back; without any the service lets nobody in."""

LASTING = (TENANTS, API_KEY_OBJECTS, "access/")
"""Prefixes of all objects that a backup has."""

PROBES = "probes/"
"""Prefix: objects that the service writes to learn what the store can do, and deletes at once."""


CAPACITIES = "ld:capacities"
"""Hash of what workers have, by their names."""


TURNS = "ld:turns"
"""Hash: when a worker last began a job of a tenant, seconds since 1970, by tenant."""

STORED_BYTES = "ld:stored-bytes"
"""Hash: bytes of a tenant's objects, by tenant, as last measured."""

STORAGE_MEASURED = "ld:storage-measured"
"""String with a time to live: some process has just measured them."""

CHANGED_USAGE = "ld:changed-usage"
"""Set of `<tenant> <month>`: usage that S3 has not seen yet."""


def usage(tenant: str, month: str) -> str:
    """Hash: seconds that workers worked for a tenant in a month, by device."""
    return f"ld:usage:{tenant}:{month}"


def workers(queue: str) -> str:
    """Sorted set of the workers that listen to a queue, by the time until which they said so, seconds since 1970."""
    return f"ld:workers:{queue}"


class Owned(NamedTuple):
    """An analysis or a study, and whose it is."""

    tenant: str
    id: str


class Kind(NamedTuple):
    """A kind of records: its name for one, and for many, which is its folder in the bucket."""

    one: str
    many: str


JOBS, STUDIES = Kind("job", "jobs"), Kind("study", "studies")


def open_records(kind: Kind) -> str:
    """Set of the ids of all tenants that are queued or running."""
    return f"ld:open-{kind.many}"


def restored(kind: Kind) -> str:
    """String: the records of S3 have been looked through since Redis was last empty, or these keys got new names."""
    return "ld:restored:2" if kind == JOBS else f"ld:restored-{kind.many}"


def records_by_time(kind: Kind, tenant: str) -> str:
    """Sorted set of a tenant's ids by creation time, microseconds."""
    return f"ld:{kind.many}-by-time:{tenant}"


def records_by_status(kind: Kind, tenant: str, status: str) -> str:
    """The same, of those that stand so."""
    return f"ld:{kind.many}-by-status:{tenant}:{status}"


def open_records_of(kind: Kind, tenant: str) -> str:
    """Set of a tenant's ids that are queued or running."""
    return f"ld:open-{kind.many}-of:{tenant}"


def record(kind: Kind, id: str) -> str:
    """String: the record as JSON."""
    return f"ld:{kind.one}:{id}"


def submission(analysis_id: str) -> str:
    """Lock: whoever makes the job, where the store cannot tell which of several was first."""
    return f"ld:submission:{analysis_id}"


def lease(analysis_id: str) -> str:
    """String with a time to live: the token of the worker that holds the job."""
    return f"ld:lease:{analysis_id}"


def announced(analysis_id: str) -> str:
    """String with a time to live: some worker has just announced the job again."""
    return f"ld:announced:{analysis_id}"


def events(analysis_id: str) -> str:
    """Stream: what was reported of a job while it ran, capped, with a time to live."""
    return f"ld:events:{analysis_id}"


def idempotency(tenant: str, digest: str) -> str:
    """String with a time to live: what a tenant's Idempotency-Key stood for, as JSON."""
    return f"ld:idempotency:{tenant}:{digest}"


def login(digest: str) -> str:
    """String with a time to live: somebody is at the sign-in provider; by the sha256 of their state."""
    return f"ld:login:{digest}"


def session(digest: str) -> str:
    """String with a time to live: as whom somebody acts who is signed in, as JSON; by the sha256 of their token."""
    return f"ld:session:{digest}"


def waiting_uploads(tenant: str) -> str:
    """Sorted set of a tenant's uploads whose bytes have not come, by when they were announced, seconds since 1970."""
    return f"ld:waiting-uploads:{tenant}"


def rate(key_id: str, minute: int) -> str:
    """Counter with a time to live: requests of an API key in one minute."""
    return f"ld:rate:{key_id}:{minute}"


def cached_report(analysis_id: str, suffix: str) -> str:
    """String with a time to live: a rendered report."""
    return f"ld:report:{analysis_id}:{suffix}"


def rates(stage: str) -> str:
    """List: operations a second of a stage in the last jobs."""
    return f"ld:rates:{stage}"


def preliminary_report(analysis_id: str, suffix: str) -> str:
    """String with a time to live: a report of an analysis that still runs."""
    return f"ld:preliminary:{analysis_id}:{suffix}"


def tenant_prefix(tenant: str) -> str:
    """Prefix: all that a tenant has in the bucket."""
    return f"{TENANTS}{tenant}/"


def record_prefix(kind: Kind, tenant: str) -> str:
    """Prefix: a tenant's records."""
    return f"{tenant_prefix(tenant)}{kind.many}/"


def record_object(kind: Kind, owned: Owned) -> str:
    """Object: the record, written when it is accepted and when it ends."""
    return f"{record_prefix(kind, owned.tenant)}{owned.id}.json"


def report_prefix(owned: Owned) -> str:
    """Prefix: a report in every format."""
    return f"{tenant_prefix(owned.tenant)}reports/{owned.id}/"


def report_object(owned: Owned, suffix: str) -> str:
    """Object: a report; suffix json, html or md."""
    return report_prefix(owned) + artifact_names.report(suffix)


def artifact_prefix(owned: Owned) -> str:
    """Prefix: what an analysis leaves beside its report and its checkpoint."""
    return f"{tenant_prefix(owned.tenant)}artifacts/{owned.id}/"


def artifact_list(owned: Owned) -> str:
    """Object: names, sizes and sha256 of these files, of the report and of the checkpoint, as JSON."""
    return f"{artifact_prefix(owned)}list.json"


def sae_prefix(owned: Owned) -> str:
    """Prefix: the autoencoders, a folder for each."""
    return f"{artifact_prefix(owned)}{artifact_names.SAES}/"


def artifact_object(owned: Owned, name: str) -> str:
    """Object: one of these files, by its name among `artifact_names`."""
    return artifact_prefix(owned) + name


def usage_object(tenant: str, month: str) -> str:
    """Object: the same as JSON."""
    return f"{tenant_prefix(tenant)}usage/{month}.json"


def unfinished_prefix(owned: Owned) -> str:
    """Prefix: states of trainings that a later worker goes on from; gone when the job has ended."""
    return f"{tenant_prefix(owned.tenant)}unfinished/{owned.id}/"


def checkpoints_prefix(tenant: str) -> str:
    """Prefix: the checkpoints that a tenant's fine-tunes made; its later requests may name them."""
    return f"{tenant_prefix(tenant)}checkpoints/"


def checkpoint_prefix(owned: Owned) -> str:
    """Prefix: the checkpoint that a fine-tune made, in transformers' layout."""
    return f"{checkpoints_prefix(owned.tenant)}{owned.id}/"


def finetune_object(tenant: str, name: str) -> str:
    """Object: what a fine-tune left and where its files are, as JSON; named by all that its weights depend on."""
    return f"{tenant_prefix(tenant)}finetunes/{name}.json"


def training_prefix(owned: Owned, name: str) -> str:
    """Prefix: the parts of a finished training of the base model, which other analyses may take over."""
    return f"{artifact_prefix(owned)}trainings/{name}/"


def training_object(tenant: str, name: str) -> str:
    """Object: where the parts of such a training lie, as JSON; named by all that its numbers depend on."""
    return f"{tenant_prefix(tenant)}trainings/{name}.json"


def uploads_prefix(tenant: str) -> str:
    """Prefix: a tenant's uploads."""
    return f"{tenant_prefix(tenant)}uploads/"


def upload_object(tenant: str, upload_id: str) -> str:
    """Object: what was uploaded."""
    return f"{tenant_prefix(tenant)}uploads/{upload_id}/data"


def upload_record(tenant: str, upload_id: str) -> str:
    """Object: what is known of an upload, as JSON."""
    return f"{tenant_prefix(tenant)}uploads/{upload_id}/upload.json"


def api_key_object(digest: str) -> str:
    """Object: an API key as JSON, named by its sha256."""
    return f"{API_KEY_OBJECTS}{digest}.json"
