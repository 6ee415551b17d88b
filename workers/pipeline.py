"""The stages of a job in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.observability import metrics, tracing
from backends.storage import key_names
from backends.storage.artifact_names import CENTRES, SCORES
from backends.storage.artifacts import Artifacts
from layerdrift.contract.analysis import StageName
from layerdrift.contract.report import Report
from workers.finetune_cache import FinetuneCache, finetune_name
from workers.models.device import forget_peak, give_memory_back
from workers.progress_writer import ProgressWriter
from workers.publishing import (
    keep_autoencoders,
    keep_centres,
    keep_scores,
    publish,
    publish_preliminary,
)
from workers.stages.causal.stage import measure_effects, preliminary
from workers.stages.causal.trajectory import trajectory_of
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.context import PairContext, StageContext
from workers.stages.common.inputs import Resolved
from workers.stages.common.progress import Spans
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.compare.stage import compare
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.heldout_rows import HeldoutRows
from workers.stages.extract.stage import extract
from workers.stages.finetune.stage import FineTuned, finetune
from workers.stages.learned.stage import learn
from workers.stages.report.stage import StageResults, StageTimes, build_report
from workers.stages.resolve.stage import resolve
from workers.stages.sae.rows import sae_rows
from workers.stages.sae.stage import train_saes
from workers.stages.sae.token_latents import token_latents
from workers.training_states import BucketCheckpoints, BucketTrainings

MEASURES, OUTPUTS = "measures", "outputs of the models"
SAE_ROWS, SAE_TRAINING = "rows", "training"
SNAPSHOTS, EFFECTS = "snapshots", "effects"
"""Spans of the progress of the stages `compare`, `sae` and `causal`."""


def stages_of(record: JobRecord) -> list[StageName]:
    """The stages that a job has, in order. `learned` is left out where the estimate knew that it is of no use."""
    left_out = set()
    if record.request.finetune is None:
        left_out.add(StageName.FINETUNE)
    if record.request.analysis.sae is None:
        left_out.add(StageName.SAE)
    if record.request.analysis.learned is None or (record.operations and StageName.LEARNED not in record.operations):
        left_out.add(StageName.LEARNED)
    return [name for name in StageName if name not in left_out]


def run_stages(deployment: Deployment, record: JobRecord, folder: Path, writer: ProgressWriter) -> Report:
    """Runs them all; the report is published, a preliminary one after `compare`.

    Args:
        folder: scratch of this job, which is made here.

    Raises:
        StageFailed: `stage` says which, `__cause__` what.
    """
    settings = deployment.settings
    trainings = BucketTrainings(deployment.blobs, record.owned)
    context = StageContext(
        request=record.request,
        folder=folder,
        scratch_bytes=settings.scratch_bytes,
        on_progress=writer.on_progress,
        checkpointing=Checkpointing(BucketCheckpoints(deployment.blobs, record.owned), settings.checkpoint_seconds),
        finished=trainings,
    )
    forget_peak()
    stages = _Stages(deployment, record, writer, Artifacts(deployment.blobs, record.owned), trainings)
    resolved = stages.resolve(context)
    finetuned = stages.finetune(context, resolved) if record.request.finetune is not None else None
    checkpoint = finetuned.checkpoint if finetuned else resolved.tuned
    if checkpoint is None:
        raise ValueError("neither a tuned checkpoint nor a fine-tune was asked for")
    pair = context.with_pair(resolved, checkpoint)
    results = stages.compare(pair, finetuned, stages.extract(pair, finetuned))
    if StageName.LEARNED in stages_of(record):
        results = stages.learned(pair, results)
    if results.extracted.heldout is not None:
        results = stages.sae(pair, results, results.extracted.heldout)
    return stages.report(stages.causal(pair, results))


@dataclass(frozen=True)
class _Stages:
    """The stages of one job, each with its progress, its memory and what it leaves in the bucket."""

    deployment: Deployment
    record: JobRecord
    writer: ProgressWriter
    artifacts: Artifacts
    trainings: BucketTrainings

    def resolve(self, context: StageContext) -> Resolved:
        sources = self.deployment.sources.of(self.record.tenant)
        with self._stage(StageName.RESOLVE):
            context.folder.mkdir(parents=True)
            return resolve(context, self.record.pins, sources, self.deployment.settings.max_parameters)

    def finetune(self, context: StageContext, resolved: Resolved) -> FineTuned:
        """A fine-tune that an earlier job made from the same inputs, or a new one."""
        blobs, target = self.deployment.blobs, context.folder / "finetuned"
        cache = FinetuneCache(blobs, self.record.owned)
        with self._stage(StageName.FINETUNE):
            name = finetune_name(self.record.request, resolved)
            finetuned = cache.find(name, target)
            if finetuned is None:
                uri = f"s3://{blobs.bucket}/{key_names.checkpoint_prefix(self.record.owned)}"
                finetuned = finetune(context, resolved, target, uri)
            else:
                context.on_progress(1.0, "reused an identical earlier fine-tune")
                self.writer.reused.append(StageName.FINETUNE)
            cache.keep(name, finetuned, self.artifacts)
        return finetuned

    def extract(self, context: PairContext, finetuned: FineTuned | None) -> Extracted:
        with self._stage(StageName.EXTRACT):
            extracted = extract(context, finetuned)
            keep_centres(extracted, context.folder / CENTRES, self.artifacts)
        return extracted

    def compare(self, context: PairContext, finetuned: FineTuned | None, extracted: Extracted) -> StageResults:
        """Ends with the preliminary report."""
        with self._stage(StageName.COMPARE):
            spans = Spans(context.on_progress, {MEASURES: 3.0, OUTPUTS: 1.0})
            compared = compare(context.part(spans.span(MEASURES)), extracted)
            evaluated = evaluate_outputs(context.part(spans.span(OUTPUTS)), compared.drift, extracted)
            if evaluated.by_text is not None:
                keep_scores(evaluated.by_text, context.folder / SCORES, self.artifacts)
            results = StageResults(
                resolved=context.resolved,
                finetuned=finetuned,
                extracted=extracted,
                compared=compared,
                evaluated=evaluated,
                effects=preliminary(context.request, compared, evaluated),
            )
            so_far = build_report(self.record, results, self._times(), self.writer.pending())
            publish_preliminary(self.deployment, self.record, so_far)
        return results

    def learned(self, context: PairContext, results: StageResults) -> StageResults:
        with self._stage(StageName.LEARNED):
            return replace(results, taught=learn(context, results.extracted))

    def sae(self, context: PairContext, results: StageResults, heldout: HeldoutRows) -> StageResults:
        settings, probed = context.request.analysis.sae, results.compared.probed
        with self._stage(StageName.SAE):
            spans = Spans(context.on_progress, {SAE_ROWS: 1.0, SAE_TRAINING: 3.0})
            extracted, along = results.extracted, context.part(spans.span(SAE_ROWS, ""))
            rows = sae_rows(along, extracted.tokenization, heldout, layered=extracted.execution.mode == "layers")
            directions = probed.directions if probed else None
            saes = train_saes(context.part(spans.span(SAE_TRAINING, "")), rows, directions)
            if self.trainings.reused:
                self.writer.reused.append(StageName.SAE)
            shown = token_latents(context, results.extracted, saes.dictionaries)
            stored = None
            if settings is not None and settings.save:
                bucket = self.deployment.blobs.bucket
                stored = keep_autoencoders(context, self.record.owned, saes, rows, bucket, self.artifacts)
        return replace(results, rows=rows, saes=saes, token_latents=shown, stored=stored)

    def causal(self, context: PairContext, results: StageResults) -> StageResults:
        finetuned, extracted = results.finetuned, results.extracted
        with self._stage(StageName.CAUSAL):
            costs = {SNAPSHOTS: 1.0 if finetuned and finetuned.snapshots else 0.0, EFFECTS: 4.0}
            spans = Spans(context.on_progress, costs)
            along = context.part(spans.span(SNAPSHOTS))
            trajectory = trajectory_of(along, finetuned, extracted) if finetuned is not None else None
            effects = measure_effects(
                context.part(spans.span(EFFECTS, "")), extracted, results.compared, results.evaluated, results.saes
            )
        return replace(results, effects=effects, trajectory=trajectory)

    def report(self, results: StageResults) -> Report:
        with self._stage(StageName.REPORT):
            report = build_report(self.record, results, self._times())
            publish(self.deployment, self.record.owned, report, self.artifacts)
        return report

    def _times(self) -> StageTimes:
        return StageTimes(self.writer.seconds, self.writer.expected, self.writer.reused)

    @contextmanager
    def _stage(self, name: StageName) -> Iterator[None]:
        """A stage, whose memory is given back whatever becomes of it."""
        try:
            with tracing.span(f"stage {name}"), self.writer.stage(name):
                yield
            metrics.STAGE_SECONDS.labels(name.value).observe(self.writer.seconds[name])
        finally:
            give_memory_back()
