"""One job from its lease to its end: the stages in order, and what becomes of errors."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import redis
import torch
from safetensors.torch import save_file

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.observability import logs, metrics, tracing
from backends.storage import key_names
from backends.storage.artifact_names import CENTRES, LATENTS, SAES, sae_file
from backends.storage.artifacts import Artifacts
from backends.storage.blobs import BlobStore
from backends.storage.report_cache import ReportFormat
from layerdrift.contract.analysis import Progress, StageName, Status
from layerdrift.contract.errors import LayerdriftError, Problem, StageError, UnavailableError
from layerdrift.contract.policy import Decision
from layerdrift.contract.report import Report
from layerdrift.policies import starter_decision
from layerdrift.render import html, markdown
from workers.checkpoints import BucketCheckpoints
from workers.finetune_cache import FinetuneCache, finetune_name
from workers.models.device import give_memory_back, start_threads
from workers.progress import Cancelled, LeaseLost, ProgressWriter, StageFailed
from workers.stages.causal.stage import measure_effects, preliminary
from workers.stages.causal.trajectory import trajectory_of
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.context import StageContext
from workers.stages.common.inputs import Resolved
from workers.stages.common.progress import Spans
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.compare.stage import compare
from workers.stages.extract.sae_rows import SaeRows, sae_rows
from workers.stages.extract.stage import Extracted, extract
from workers.stages.finetune.stage import Tuned, finetune
from workers.stages.report.stage import Findings, StoredFiles, build_report
from workers.stages.resolve.stage import resolve
from workers.stages.sae.files import named, save_sae
from workers.stages.sae.findings import Trained
from workers.stages.sae.latent_table import write_latents
from workers.stages.sae.stage import train_saes
from workers.stages.sae.token_latents import token_latents

_AWAY = (UnavailableError, redis.RedisError)
"""What a stage raises while a server behind it is unavailable: no fault of the job's."""

MEASURES, OUTPUTS = "measures", "outputs of the models"
SAE_ROWS, SAE_TRAINING = "rows", "training"
SNAPSHOTS, EFFECTS = "snapshots", "effects"
"""Spans of the progress of the stages `compare`, `sae` and `causal`."""

LEAST_FINETUNE = 2.0
"""Seconds below which a fine-tune was taken over from an earlier job."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """The right to run a job: `lost` is set when it may have gone to another worker."""

    owner: str
    lost: threading.Event


def run_job(deployment: Deployment, analysis_id: str) -> None:
    """Runs a job if no other worker holds it, and leaves its record in a final state.

    A worker that dies, or that Redis or S3 fail, leaves the record open: the lease ends and the job is announced again.
    """
    start_threads()
    gc.freeze()  # modules are no garbage: looking through them after every stage took most of a small job's time
    with logs.bound(job_id=analysis_id):
        _run_leased(deployment, analysis_id)


def _run_leased(deployment: Deployment, analysis_id: str) -> None:
    jobs, settings = deployment.jobs, deployment.settings
    with _leased(deployment, analysis_id) as lease:
        if lease is None:
            logger.info("%s: another worker has it", analysis_id)
            return
        if jobs.get(analysis_id).status.final:
            return
        record = jobs.update(analysis_id, lambda found: _taken(found, settings.max_attempts))
        if not record.status.final:
            metrics.ATTEMPTS.inc()
            folder = settings.scratch / f"{analysis_id}.{lease.owner}"
            try:
                record = _run(deployment, record, folder, lease)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        if record.status.final:
            metrics.JOBS.labels(record.status.value).inc()
            _forget_unfinished(deployment, record.owned)


def _taken(record: JobRecord, max_attempts: int) -> JobRecord:
    """The record in the hands of one more worker, or at its end where somebody asked for that or too many were lost."""
    if record.status.final:
        return record
    if record.cancel_requested:
        return record.ended(Status.CANCELLED)
    if record.attempts >= max_attempts:
        return record.ended(Status.FAILED, _worker_lost(record.attempts))
    return record.model_copy(
        update={
            "status": Status.RUNNING,
            "attempts": record.attempts + 1,
            "started_at": record.started_at or datetime.now(UTC),
            "progress": Progress(),
        }
    )


def _run(deployment: Deployment, record: JobRecord, folder: Path, lease: Lease) -> JobRecord:
    """The record at its end, or as it was where another worker is to go on."""
    writer = ProgressWriter(
        deployment.jobs, record.id, _stages(record), lease.lost, _expected_seconds(deployment, record)
    )
    drift: list[float] | None = None
    decision: Decision | None = None
    try:
        with tracing.span("analysis", record.trace, job_id=record.id, attempt=str(record.attempts)):
            report = _run_stages(deployment, record, folder, writer)
    except LeaseLost:
        logger.warning("%s: lost the lease; another worker continues", record.id)
        return record
    except Cancelled:
        status, error = Status.CANCELLED, None
    except StageFailed as failure:
        if isinstance(failure.__cause__, _AWAY):
            logger.warning("%s: returned to the queue in stage %s: %s", record.id, failure.stage, failure.__cause__)
            return record
        status, error = Status.FAILED, _problem(failure)
        logger.error("%s: stage %s failed", record.id, failure.stage, exc_info=failure.__cause__)
    else:
        status, error, decision = Status.SUCCEEDED, None, starter_decision(report)
        drift = [layer.drift for layer in report.layers]

    def end(found: JobRecord) -> JobRecord:
        if found.status.final or found.attempts != record.attempts or lease.lost.is_set():
            return found
        return found.ended(status, error).model_copy(
            update={"progress": writer.progress(), "drift": drift, "verdict": decision}
        )

    ended = deployment.jobs.update(record.id, end)
    if ended.status is Status.SUCCEEDED:
        _record_rates(deployment, record, writer)
    logger.info("%s: %s", record.id, ended.status)
    return ended


def _expected_seconds(deployment: Deployment, record: JobRecord) -> dict[StageName, float]:
    try:
        return deployment.rates.seconds(record.operations)
    except redis.RedisError as error:
        logger.warning("%s: no estimate: %s", record.id, error)
        return {}


def _record_rates(deployment: Deployment, record: JobRecord, writer: ProgressWriter) -> None:
    """Keeps what the stages took, for later estimates; a fine-tune that was taken over tells nothing."""
    try:
        for stage, operations in record.operations.items():
            if stage in writer.seconds and not (stage is StageName.FINETUNE and writer.seconds[stage] < LEAST_FINETUNE):
                deployment.rates.record(stage, operations, writer.seconds[stage])
    except redis.RedisError as error:
        logger.warning("%s: could not store its pace: %s", record.id, error)


def _forget_unfinished(deployment: Deployment, owned: key_names.Owned) -> None:
    try:
        BucketCheckpoints(deployment.blobs, owned).clear()
        deployment.reports.forget_preliminary(owned)
    except (UnavailableError, redis.RedisError) as error:  # no more than room in the bucket and in Redis
        logger.warning("%s: could not remove the saved states of its trainings: %s", owned.id, error)


@contextmanager
def _stage(writer: ProgressWriter, name: StageName) -> Iterator[None]:
    """A stage, whose memory is given back whatever becomes of it."""
    try:
        with tracing.span(f"stage {name}"), writer.stage(name):
            yield
        metrics.STAGE_SECONDS.labels(name.value).observe(writer.seconds[name])
    finally:
        give_memory_back()


def _stages(record: JobRecord) -> list[StageName]:
    left_out = set()
    if record.request.finetune is None:
        left_out.add(StageName.FINETUNE)
    if record.request.analysis.sae is None:
        left_out.add(StageName.SAE)
    return [name for name in StageName if name not in left_out]


def _run_stages(deployment: Deployment, record: JobRecord, folder: Path, writer: ProgressWriter) -> Report:
    settings, request = deployment.settings, record.request
    job = StageContext(
        request=request,
        folder=folder,
        scratch_bytes=settings.scratch_bytes,
        on_progress=writer.on_progress,
        checkpointing=Checkpointing(BucketCheckpoints(deployment.blobs, record.owned), settings.checkpoint_seconds),
    )
    with _stage(writer, StageName.RESOLVE):
        folder.mkdir(parents=True)
        resolved = resolve(job, record.pins, deployment.sources.of(record.tenant), settings.max_parameters)
    artifacts = Artifacts(deployment.blobs, record.owned)
    tuned = _tune(job, record, resolved, writer, deployment.blobs, artifacts) if request.finetune is not None else None
    checkpoint = tuned.checkpoint if tuned else resolved.tuned
    if checkpoint is None:
        raise ValueError("neither a tuned checkpoint nor a fine-tune was asked for")
    context = job.with_pair(resolved, checkpoint)
    with _stage(writer, StageName.EXTRACT):
        extracted = extract(context, tuned)
        _keep_centres(extracted, folder / CENTRES, artifacts)
    with _stage(writer, StageName.COMPARE):
        spans = Spans(writer.on_progress, {MEASURES: 3.0, OUTPUTS: 1.0})
        compared = compare(context.part(spans.span(MEASURES)), extracted)
        for store in extracted.groups.values():
            store.clear()
        evaluated = evaluate_outputs(context.part(spans.span(OUTPUTS)), compared.drift, extracted)
        advice = preliminary(request, compared, evaluated)
        known = Findings(resolved, tuned, extracted, compared, evaluated, None, None, None, None, advice)
        so_far = build_report(record, known, writer.seconds, writer.pending())
        _publish_preliminary(deployment, record, so_far)
    rows, trained, shown, kept = None, None, None, None
    if extracted.heldout is not None:
        with _stage(writer, StageName.SAE):
            spans = Spans(writer.on_progress, {SAE_ROWS: 1.0, SAE_TRAINING: 3.0})
            rows = sae_rows(context.part(spans.span(SAE_ROWS, "")), extracted.tokenization, extracted.heldout)
            directions = compared.probed.directions if compared.probed else None
            trained = train_saes(context.part(spans.span(SAE_TRAINING, "")), rows, directions)
            shown = token_latents(context, extracted, trained.dictionaries)
            if request.analysis.sae is not None and request.analysis.sae.save:
                kept = _keep(context, record.owned, trained, rows, deployment.blobs.bucket, artifacts)
    with _stage(writer, StageName.CAUSAL):
        spans = Spans(writer.on_progress, {SNAPSHOTS: 1.0 if tuned and tuned.snapshots else 0.0, EFFECTS: 4.0})
        along = context.part(spans.span(SNAPSHOTS))
        trajectory = trajectory_of(along, tuned, extracted) if tuned is not None else None
        effects = measure_effects(context.part(spans.span(EFFECTS, "")), extracted, compared, evaluated, trained)
    with _stage(writer, StageName.REPORT):
        found = Findings(
            resolved, tuned, extracted, compared, evaluated, rows, trained, shown, kept, effects, trajectory
        )
        report = build_report(record, found, writer.seconds)
        _publish(deployment, record.owned, report, artifacts)
    return report


def _tune(
    context: StageContext,
    record: JobRecord,
    resolved: Resolved,
    writer: ProgressWriter,
    blobs: BlobStore,
    artifacts: Artifacts,
) -> Tuned:
    target, prefix = context.folder / "finetuned", key_names.checkpoint_prefix(record.owned)
    finetunes = FinetuneCache(blobs, record.owned)
    with _stage(writer, StageName.FINETUNE):
        name = finetune_name(record.request, resolved)
        tuned = finetunes.find(name, target)
        if tuned is None:
            tuned = finetune(context, resolved, target, f"s3://{blobs.bucket}/{prefix}")
        else:
            context.on_progress(1.0, "reused an identical earlier fine-tune")
        finetunes.keep(name, tuned, artifacts)
    return tuned


def _keep_centres(extracted: Extracted, path: Path, artifacts: Artifacts) -> None:
    """Stores how texts were read and what drift is centred at, so that other texts can be inspected later."""
    frame, tokenization = extracted.moments["token"].frame, extracted.tokenization
    tensors = {"base": frame.base.contiguous(), "tuned": frame.tuned.contiguous()}
    tensors["base_spread"], tensors["tuned_spread"] = frame.spreads()
    tensors["length"] = torch.tensor(tokenization.length)
    if tokenization.inliers is not None:
        tensors |= {"base_limits": tokenization.inliers.base_limits, "tuned_limits": tokenization.inliers.tuned_limits}
    save_file(tensors, path)
    artifacts.put_named(CENTRES, path)


def _keep(
    context: StageContext, owned: key_names.Owned, trained: Trained, rows: SaeRows, bucket: str, artifacts: Artifacts
) -> StoredFiles:
    """Stores the autoencoders, one after another on disk, and the table of their latents."""
    folder, on_progress = context.folder / SAES, context.on_progress
    for sae in named(trained.dictionaries):
        on_progress(1.0, f"storing the autoencoder {sae.name}")
        metadata = {"hook_name": f"hidden_states.{sae.layer}", "layerdrift": {"analysis": owned.id, "sae": sae.name}}
        save_sae(sae.stack, sae.site, folder, metadata)
        for path in sorted(folder.iterdir()):
            artifacts.put_named(sae_file(sae.name, path.name), path)
        shutil.rmtree(folder)
    latents = folder.with_suffix(".parquet")
    write_latents(latents, trained.dictionaries, rows.heldout, rows.contexts, on_progress)
    artifacts.put_named(LATENTS, latents)
    return StoredFiles(
        f"s3://{bucket}/{key_names.sae_prefix(owned)}", f"s3://{bucket}/{key_names.artifact_object(owned, LATENTS)}"
    )


def _publish(deployment: Deployment, owned: key_names.Owned, report: Report, artifacts: Artifacts) -> None:
    """Writes the report in every format; the JSON last, since the others are drawn from it."""
    bodies = _rendered(report)
    for format, body in bodies.items():
        artifacts.put_report(format, body)
    artifacts.finish()
    for format, body in bodies.items():
        deployment.reports.put(owned, format, body)


def _publish_preliminary(deployment: Deployment, record: JobRecord, report: Report) -> None:
    """Makes what is known readable while later stages run. Without Redis nobody reads it: no reason to stop."""
    drift = [layer.drift for layer in report.layers]

    def note(found: JobRecord) -> JobRecord:
        if found.status.final or found.attempts != record.attempts:
            return found
        return found.model_copy(update={"preliminary": True, "drift": drift})

    try:
        for format, body in _rendered(report).items():
            deployment.reports.put_preliminary(record.owned, format, body)
        deployment.jobs.update(record.id, note)
    except (redis.RedisError, UnavailableError) as error:
        logger.warning("%s: could not write the preliminary report: %s", record.id, error)


def _rendered(report: Report) -> dict[ReportFormat, bytes]:
    return {
        "html": html.render(report).encode(),
        "md": markdown.render(report).encode(),
        "json": report.model_dump_json(indent=1).encode(),
    }


def _give_up(deployment: Deployment, analysis_id: str, owner: str) -> None:
    """Ends a cancelled job that is stuck, and this process with it; not where it has just come to its end."""
    ended = False

    def end(found: JobRecord) -> JobRecord:
        nonlocal ended
        ended = not found.status.final
        return found.ended(Status.CANCELLED) if ended else found

    deployment.jobs.update(analysis_id, end)
    if ended:
        logger.warning("%s: cancelled but still running; ending its process", analysis_id)
        deployment.leases.release(analysis_id, owner)
        _end_process()


def _end_process() -> None:
    os._exit(os.EX_SOFTWARE)


def _problem(failure: StageFailed) -> Problem:
    cause = failure.__cause__
    if isinstance(cause, LayerdriftError):
        return cause.problem().model_copy(update={"stage": failure.stage.value})
    error = StageError(f"{failure.stage} failed with {type(cause).__name__}: {cause}")
    return error.problem().model_copy(update={"stage": failure.stage.value})


def _worker_lost(times: int) -> Problem:
    return Problem(
        type="urn:layerdrift:worker-lost",
        title="Worker lost",
        status=500,
        detail=f"{times} workers took this job and none finished it: they died or were stopped. If memory is the "
        "cause, use fewer or shorter texts, smaller autoencoders, or a larger machine; otherwise post it again",
    )


@contextmanager
def _leased(deployment: Deployment, analysis_id: str) -> Iterator[Lease | None]:
    """Holds the job's lease, renewed from a thread. None: somebody else holds it.

    A job that was cancelled `cancel_seconds` ago and still goes on is stuck in something that never asks: it is
    ended with its process, which the pool replaces.
    """
    jobs, leases, settings = deployment.jobs, deployment.leases, deployment.settings
    seconds, patience = settings.lease_seconds, settings.cancel_seconds
    owner = uuid.uuid4().hex[:12]
    if not leases.take(analysis_id, owner, seconds):
        yield None
        return
    lost, ended = threading.Event(), threading.Event()

    def renew() -> None:
        cancelled_at: float | None = None
        while not ended.wait(min(seconds, patience) / 3):
            try:
                if not leases.renew(analysis_id, owner, seconds):
                    lost.set()
                    return
                if cancelled_at is None and jobs.get(analysis_id).cancel_requested:
                    cancelled_at = time.monotonic()
                if cancelled_at is not None and time.monotonic() - cancelled_at > patience:
                    _give_up(deployment, analysis_id, owner)
            except (redis.RedisError, UnavailableError) as error:
                logger.warning("%s: could not renew the lease: %s", analysis_id, error)

    heart = threading.Thread(target=renew, name=f"lease-{analysis_id}", daemon=True)
    heart.start()
    try:
        yield Lease(owner, lost)
    finally:
        ended.set()
        heart.join()
        with suppress(redis.RedisError):  # it runs out by itself
            leases.release(analysis_id, owner)
