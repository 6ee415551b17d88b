"""Submitting an analysis: pins what the request points at, writes the record, announces the job. Knows no HTTP."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from backends.deployment import Deployment
from backends.estimates.fitting import require_room
from backends.estimates.workload import Workload, workload
from backends.jobs.identity import analysis_id
from backends.jobs.records import Delivery, JobRecord
from backends.sources.pinning import PinnedDataset, Pins, Sources
from backends.sources.uploaded import pinned_upload
from backends.storage.uploads import INLINE_NAME, SCHEME, UploadStore
from layerdrift import __version__
from layerdrift.contract.errors import ConflictError, LayerdriftError, RateError
from layerdrift.contract.request import AnalysisRequest, DatasetRef, Label, TextsRef, Webhook
from layerdrift.contract.upload import Upload
from service.use_cases.quotas import require_job_quota

RETRY_SECONDS = 30

logger = logging.getLogger(__name__)


class Requester(BaseModel):
    """Who submits something.

    submitted_by: name of the API key, or its id. open_jobs: how many jobs the tenant may have queued or running.
    priority: 0 to 9, of its jobs. trace: traceparent of the request.
    """

    tenant: str
    submitted_by: str
    open_jobs: int
    priority: int
    trace: str | None


class Submission(Requester):
    """A request and who makes it."""

    request: AnalysisRequest


class Submitted(NamedTuple):
    """The record of an analysis; `new` where this submission made it or runs it again."""

    record: JobRecord
    new: bool


class Pinned(NamedTuple):
    """A request, and exactly which files it means."""

    request: AnalysisRequest
    pins: Pins


def submit(deployment: Deployment, submission: Submission) -> Submitted:
    """Pins the request and makes its job, unless it is there already.

    Raises:
        InputError: the request points at something unusable, or no worker can hold it.
        RateError: the tenant has too many open jobs.
        UnavailableError: S3 is unavailable.
    """
    return enqueue(deployment, prepare(deployment, submission), submission.open_jobs)


def prepare(deployment: Deployment, submission: Submission) -> JobRecord:
    """The record of a submission, which nobody has stored yet.

    Raises:
        InputError, UnavailableError: as `submit`.
    """
    tenant = submission.tenant
    _check_webhook(deployment, submission)
    sources = deployment.sources.of(tenant)
    asked = Pinned(submission.request, sources.pin(submission.request))
    work = _work(deployment, sources, asked)
    compared = asked.request.described(upload_names(deployment.uploads, tenant, asked.request))
    return _record(submission, _with_uploads(deployment.uploads, tenant, asked), compared, work)


def rerun(deployment: Deployment, submission: Submission, before: JobRecord) -> Submitted:
    """Asks this version of the engine what an analysis asked an earlier one, of the same files.

    Where no other version made it, that is the analysis itself; a failed or cancelled one runs again.

    Args:
        submission: with the request of `before`, and who asks now.

    Raises:
        ConflictError: it is queued or running.
        InputError, RateError, UnavailableError: as `submit`.
    """
    if not before.status.final:
        raise ConflictError(f"the analysis is {before.status}; it can be made again once it has ended")
    _check_webhook(deployment, submission)
    asked = Pinned(before.request, before.pins)
    work = _work(deployment, deployment.sources.of(submission.tenant), asked)
    return enqueue(deployment, _record(submission, asked, before.compared, work), submission.open_jobs)


def _check_webhook(deployment: Deployment, submission: Submission) -> None:
    if submission.request.webhook is not None:
        deployment.webhooks.check(submission.request.webhook)


def _record(submission: Submission, asked: Pinned, compared: str, work: Workload | None) -> JobRecord:
    webhook = submission.request.webhook
    return JobRecord(
        id=analysis_id(submission.tenant, asked.request, asked.pins),
        tenant=submission.tenant,
        submitted_by=submission.submitted_by,
        priority=submission.priority,
        created_at=datetime.now(UTC),
        request=asked.request,
        compared=compared,
        pins=asked.pins,
        deliveries=[Delivery(webhook=webhook)] if webhook else [],
        trace=submission.trace,
        engine=__version__,
        operations=work.operations if work is not None else {},
        memory_bytes=work.memory if work is not None else None,
    )


def enqueue(deployment: Deployment, fresh: JobRecord, open_jobs: int) -> Submitted:
    """Stores a record and announces its job, unless it is there already.

    Args:
        open_jobs: how many jobs the tenant may have queued or running.

    Raises:
        RateError: it has as many, or a quota is used up.
        UnavailableError: S3 is unavailable.
    """

    def admit() -> None:
        opened = deployment.listing.open_count(fresh.tenant)
        if opened >= open_jobs:
            raise RateError(f"{opened} jobs are queued or running, the limit of this key", RETRY_SECONDS)
        require_job_quota(deployment, fresh.tenant)

    webhook = fresh.request.webhook
    record, to_run = deployment.jobs.submit(fresh, admit)
    if not to_run and webhook is not None:
        record = deployment.jobs.update(record.id, lambda found: _with_webhook(found, webhook))
    if to_run:
        deployment.queue.announce(record)
    return Submitted(record, to_run)


def _with_uploads(uploads: UploadStore, tenant: str, asked: Pinned) -> Pinned:
    """The same with texts that came inline as uploads: a record is read often, and these may be megabytes."""
    dataset, reference = asked.request.dataset, asked.request.dataset.reference
    pinned = dict[str, PinnedDataset]()
    if reference is not None and reference.inline is not None:
        upload, reference = _upload_inline(uploads, tenant, reference)
        pinned["reference"] = PinnedDataset(source=upload.uri, file=pinned_upload(upload))
    if dataset.inline is not None:
        upload, dataset = _upload_inline(uploads, tenant, dataset)
        pinned["dataset"] = PinnedDataset(source=upload.uri, file=pinned_upload(upload))
    if not pinned:
        return asked
    request = asked.request.model_copy(update={"dataset": dataset.model_copy(update={"reference": reference})})
    return Pinned(request, asked.pins.model_copy(update=pinned))


def without_inline(uploads: UploadStore, tenant: str, dataset: DatasetRef) -> DatasetRef:
    """A data set with texts that came inline as uploads."""
    reference = dataset.reference
    if reference is not None:
        reference = _upload_inline(uploads, tenant, reference)[1] if reference.inline is not None else reference
    uploaded = _upload_inline(uploads, tenant, dataset)[1] if dataset.inline is not None else dataset
    return uploaded.model_copy(update={"reference": reference})


def upload_names(uploads: UploadStore, tenant: str, request: AnalysisRequest) -> dict[str, str]:
    """What the uploads of a request are called, by their URI: a folder that was sent as a zip by the folder's name."""
    others = (one.uri if one else None for one in (request.tuned, request.benign))
    uris = (request.base.uri, *others, request.dataset.uri)
    sent = [uri for uri in uris if uri is not None and uri.startswith(SCHEME)]
    return {uri: uploads.get(tenant, uri.removeprefix(SCHEME)).filename.removesuffix(".zip") for uri in sent}


def _work(deployment: Deployment, sources: Sources, asked: Pinned) -> Workload | None:
    """What the request takes, for the time that is left; None where the sizes cannot be read.

    Raises:
        InputError: no live worker can hold it.
    """
    try:
        sizes = sources.sizes(asked.request, asked.pins)
    except LayerdriftError as error:
        logger.warning("no estimate: %s", error.detail)
        return None
    if not deployment.settings.scaled_queues:  # of a worker that is yet to start nothing is known
        capacities = deployment.workers.capacities("cpu")  # those with a GPU listen there too
        require_room(asked.request, sizes, capacities, deployment.settings.scratch_bytes)
    return workload(asked.request, sizes.model, sizes.data, sizes.tuned_bytes, sizes.adapter)


def _with_webhook(record: JobRecord, webhook: Webhook) -> JobRecord:
    """The record of a request that was made before, which tells one more."""
    if any(delivery.webhook == webhook for delivery in record.deliveries):
        return record
    return record.model_copy(update={"deliveries": [*record.deliveries, Delivery(webhook=webhook)]})


_Texts = TypeVar("_Texts", bound=TextsRef)


def _upload_inline(uploads: UploadStore, tenant: str, given: _Texts) -> tuple[Upload, _Texts]:
    """The texts of a request as an upload, and how it is read."""
    inline = given.inline
    if inline is None:
        raise ValueError("the data set is not inline")
    columns: dict[str, Sequence[Label | None]] = {"text": inline.texts}
    columns["label"] = inline.labels or [None] * len(inline.texts)
    columns |= {
        name: values for name, values in (("pair", inline.pairs), ("group", inline.groups)) if values is not None
    }
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    upload = uploads.keep_inline(tenant, body, INLINE_NAME)
    read = {
        "uri": upload.uri,
        "inline": None,
        "text_column": "text",
        "label_column": None,
        "text_pair_column": None if inline.pairs is None else "pair",
        "group_column": None if inline.groups is None else "group",
    }
    return upload, given.model_copy(update=read)
