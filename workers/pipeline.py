"""The stages of a job in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.observability import metrics, tracing
from backends.storage import key_names
from backends.storage.artifact_names import CENTRES
from backends.storage.artifacts import Artifacts
from backends.storage.blobs import BlobStore
from layerdrift.contract.analysis import StageName
from layerdrift.contract.report import Report
from workers.finetune_cache import FinetuneCache, finetune_name
from workers.models.device import give_memory_back
from workers.progress_writer import ProgressWriter
from workers.publishing import keep_autoencoders, keep_centres, publish, publish_preliminary
from workers.stages.causal.stage import measure_effects, preliminary
from workers.stages.causal.trajectory import trajectory_of
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.context import StageContext
from workers.stages.common.inputs import Resolved
from workers.stages.common.progress import Spans
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.compare.stage import compare
from workers.stages.extract.stage import extract
from workers.stages.finetune.stage import FineTuned, finetune
from workers.stages.report.stage import StageResults, build_report
from workers.stages.resolve.stage import resolve
from workers.stages.sae.rows import sae_rows
from workers.stages.sae.stage import train_saes
from workers.stages.sae.token_latents import token_latents
from workers.training_states import BucketCheckpoints

MEASURES, OUTPUTS = "measures", "outputs of the models"
SAE_ROWS, SAE_TRAINING = "rows", "training"
SNAPSHOTS, EFFECTS = "snapshots", "effects"
"""Spans of the progress of the stages `compare`, `sae` and `causal`."""


logger = logging.getLogger(__name__)


@contextmanager
def _stage(writer: ProgressWriter, name: StageName) -> Iterator[None]:
    """A stage, whose memory is given back whatever becomes of it."""
    try:
        with tracing.span(f"stage {name}"), writer.stage(name):
            yield
        metrics.STAGE_SECONDS.labels(name.value).observe(writer.seconds[name])
    finally:
        give_memory_back()


def stages_of(record: JobRecord) -> list[StageName]:
    """The stages that a job has, in order."""
    left_out = set()
    if record.request.finetune is None:
        left_out.add(StageName.FINETUNE)
    if record.request.analysis.sae is None:
        left_out.add(StageName.SAE)
    return [name for name in StageName if name not in left_out]


def run_stages(deployment: Deployment, record: JobRecord, folder: Path, writer: ProgressWriter) -> Report:
    """Runs them all; the report is published, a preliminary one after `compare`.

    Args:
        folder: scratch of this job, which is made here.

    Raises:
        StageFailed: `stage` says which, `__cause__` what.
    """
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
    finetuned = (
        _tune(job, record, resolved, writer, deployment.blobs, artifacts) if request.finetune is not None else None
    )
    checkpoint = finetuned.checkpoint if finetuned else resolved.tuned
    if checkpoint is None:
        raise ValueError("neither a tuned checkpoint nor a fine-tune was asked for")
    context = job.with_pair(resolved, checkpoint)
    with _stage(writer, StageName.EXTRACT):
        extracted = extract(context, finetuned)
        keep_centres(extracted, folder / CENTRES, artifacts)
    with _stage(writer, StageName.COMPARE):
        spans = Spans(writer.on_progress, {MEASURES: 3.0, OUTPUTS: 1.0})
        compared = compare(context.part(spans.span(MEASURES)), extracted)
        for store in extracted.groups.values():
            store.clear()
        evaluated = evaluate_outputs(context.part(spans.span(OUTPUTS)), compared.drift, extracted)
        known = StageResults(
            resolved=resolved,
            finetuned=finetuned,
            extracted=extracted,
            compared=compared,
            evaluated=evaluated,
            effects=preliminary(request, compared, evaluated),
        )
        so_far = build_report(record, known, writer.seconds, writer.pending())
        publish_preliminary(deployment, record, so_far)
    rows, saes, shown, stored = None, None, None, None
    if extracted.heldout is not None:
        with _stage(writer, StageName.SAE):
            spans = Spans(writer.on_progress, {SAE_ROWS: 1.0, SAE_TRAINING: 3.0})
            rows = sae_rows(context.part(spans.span(SAE_ROWS, "")), extracted.tokenization, extracted.heldout)
            directions = compared.probed.directions if compared.probed else None
            saes = train_saes(context.part(spans.span(SAE_TRAINING, "")), rows, directions)
            shown = token_latents(context, extracted, saes.dictionaries)
            if request.analysis.sae is not None and request.analysis.sae.save:
                stored = keep_autoencoders(context, record.owned, saes, rows, deployment.blobs.bucket, artifacts)
    with _stage(writer, StageName.CAUSAL):
        spans = Spans(writer.on_progress, {SNAPSHOTS: 1.0 if finetuned and finetuned.snapshots else 0.0, EFFECTS: 4.0})
        along = context.part(spans.span(SNAPSHOTS))
        trajectory = trajectory_of(along, finetuned, extracted) if finetuned is not None else None
        effects = measure_effects(context.part(spans.span(EFFECTS, "")), extracted, compared, evaluated, saes)
    with _stage(writer, StageName.REPORT):
        results = replace(
            known,
            rows=rows,
            saes=saes,
            token_latents=shown,
            stored=stored,
            effects=effects,
            trajectory=trajectory,
        )
        report = build_report(record, results, writer.seconds)
        publish(deployment, record.owned, report, artifacts)
    return report


def _tune(
    context: StageContext,
    record: JobRecord,
    resolved: Resolved,
    writer: ProgressWriter,
    blobs: BlobStore,
    artifacts: Artifacts,
) -> FineTuned:
    target, prefix = context.folder / "finetuned", key_names.checkpoint_prefix(record.owned)
    finetunes = FinetuneCache(blobs, record.owned)
    with _stage(writer, StageName.FINETUNE):
        name = finetune_name(record.request, resolved)
        finetuned = finetunes.find(name, target)
        if finetuned is None:
            finetuned = finetune(context, resolved, target, f"s3://{blobs.bucket}/{prefix}")
        else:
            context.on_progress(1.0, "reused an identical earlier fine-tune")
        finetunes.keep(name, finetuned, artifacts)
    return finetuned
