"""Stage `report`: the results of all stages as one document. Draws nothing and stores nothing."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from backends.jobs.records import JobRecord
from layerdrift import __version__
from layerdrift.contract import report as schema
from layerdrift.contract.analysis import StageName
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.words import REDACTED
from workers.models.chats import TOKEN_ROLES
from workers.models.device import best_device, device_name, peak_device_memory_bytes, peak_memory_bytes
from workers.results.autoencoders import ChangedLatent
from workers.results.measured import Measured
from workers.results.pending import PendingStage
from workers.results.similarity import Zone
from workers.results.tokens import TokenDrift, TokenLatents
from workers.results.training import Trajectory
from workers.results.warnings import ReportWarning
from workers.stages.causal.stage import Effects
from workers.stages.common.inputs import Resolved
from workers.stages.compare.head_outputs import Evaluated
from workers.stages.compare.stage import Compared
from workers.stages.extract.extracted import Execution, Extracted
from workers.stages.finetune.stage import FineTuned
from workers.stages.learned.stage import Taught
from workers.stages.report.mapping import all_as, as_schema, optional_as
from workers.stages.sae.findings import Quality, SaeResults
from workers.stages.sae.rows import SaeRows
from workers.stages.sae.splicing import Spliced

PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy", "numba")


@dataclass(frozen=True)
class StoredFiles:
    """Where the autoencoders and the table of their latents are: S3 URIs."""

    autoencoders: str
    latents: str


@dataclass(frozen=True)
class StageResults:
    """What the stages left; None: the stage did not run, or not yet."""

    resolved: Resolved
    finetuned: FineTuned | None
    extracted: Extracted
    compared: Compared
    evaluated: Evaluated
    effects: Effects
    rows: SaeRows | None = None
    saes: SaeResults | None = None
    token_latents: list[TokenLatents | None] | None = None
    stored: StoredFiles | None = None
    trajectory: Trajectory | None = None
    taught: Taught | None = None


@dataclass(frozen=True)
class StageTimes:
    """By stage, the seconds that it took and what was estimated before; and which stages took over earlier work."""

    seconds: dict[str, float]
    expected: Mapping[StageName, float]
    reused: Sequence[StageName] = ()


def build_report(
    record: JobRecord, results: StageResults, times: StageTimes, pending: Sequence[PendingStage] = ()
) -> Report:
    """The report of an analysis; a preliminary one where stages are pending."""
    request, resolved, extracted = record.request, results.resolved, results.extracted
    compared, effects = results.compared, results.effects
    finetuned, saes = results.finetuned, results.saes
    return Report(
        status="preliminary" if pending else "complete",
        pending=all_as(schema.PendingStage, pending),
        analysis_id=record.id,
        name=record.title,
        compared=record.compared or request.compared,
        created_at=datetime.now(UTC),
        engine=_engine(extracted.execution),
        request=_published(request),
        models={
            "base": as_schema(schema.ModelInfo, extracted.models["base"]),
            "tuned": as_schema(schema.ModelInfo, extracted.models["tuned"]),
        },
        dataset=_dataset(request, resolved, extracted, results.rows),
        layers=_layers(results),
        cross_layer_cka=as_schema(schema.CrossLayerCka, compared.cross_layer_cka),
        zones=all_as(schema.Zone, compared.zones),
        noise_floors=all_as(schema.NoiseFloor, compared.noise_floors),
        outputs=optional_as(schema.Outputs, results.evaluated.outputs),
        reference=_reference(results),
        finetune=as_schema(schema.FineTuneRun, finetuned.run) if finetuned else None,
        trajectory=optional_as(schema.Trajectory, results.trajectory),
        probes=as_schema(schema.ProbeInfo, compared.probed.info) if compared.probed else None,
        causal=as_schema(schema.Causal, effects.causal),
        recommendation=as_schema(schema.Recommendation, effects.recommendation),
        learned=optional_as(schema.Learned, results.taught.learned if results.taught else None),
        tokens=as_schema(schema.TokenDrift, _tokens(results)),
        latents=all_as(schema.ChangedLatent, _latents(results)),
        sae_runs=all_as(schema.SaeRun, saes.runs if saes else []),
        autoencoders=results.stored.autoencoders if results.stored else None,
        latent_table=results.stored.latents if results.stored else None,
        warnings=all_as(schema.ReportWarning, _warnings(results)),
        timings=schema.Timings(
            stages=times.seconds,
            peak_memory_bytes=peak_memory_bytes(),
            peak_device_memory_bytes=peak_device_memory_bytes(),
            estimated_stages={stage.value: round(seconds, 1) for stage, seconds in times.expected.items()},
            estimated_memory_bytes=record.memory_bytes,
            reused=[stage.value for stage in times.reused],
        ),
    )


def _warnings(results: StageResults) -> list[ReportWarning]:
    """Those of all stages, in their order."""
    return [
        *results.resolved.warnings,
        *(results.finetuned.warnings if results.finetuned else []),
        *results.extracted.warnings,
        *results.compared.warnings,
        *results.evaluated.warnings,
        *(results.saes.warnings if results.saes else []),
        *results.effects.warnings,
    ]


def _engine(execution: Execution) -> schema.Engine:
    return schema.Engine(
        version=__version__,
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        device=device_name(best_device()),
        threads=torch.get_num_threads(),
        execution=execution.mode,
        execution_reason=execution.reason,
    )


def _published(request: AnalysisRequest) -> AnalysisRequest:
    """The request as the report shows it: words that must not appear are only counted."""
    learned = request.analysis.learned
    if learned is None or not learned.redact:
        return request
    hidden = learned.model_copy(update={"redact": [REDACTED] * len(learned.redact)})
    return request.model_copy(update={"analysis": request.analysis.model_copy(update={"learned": hidden})})


def _dataset(
    request: AnalysisRequest, resolved: Resolved, extracted: Extracted, rows: SaeRows | None
) -> schema.DatasetInfo:
    counts = extracted.counts
    return schema.DatasetInfo(
        source=request.dataset.uri or "inline",
        sha256=resolved.dataset_sha256,
        rows=resolved.usable_rows,
        analysed_texts=extracted.views["mean"].rows,
        analysed_tokens=extracted.views["token"].rows,
        role_tokens={role: extracted.views[role].rows for role in TOKEN_ROLES if role in extracted.views},
        units=None
        if extracted.tokenization.units is None
        else int(extracted.tokenization.units_of(extracted.analysed).max()) + 1,
        train_texts=len(resolved.split.train),
        max_length=extracted.tokenization.length,
        truncated_share=counts.truncated_share,
        excluded_first_tokens=counts.first,
        excluded_outliers=counts.outliers,
        excluded_share=counts.excluded_share,
        sae_texts=rows.texts if rows else 0,
        sae_distinct_tokens=rows.train.rows if rows else 0,
    )


def _reference(results: StageResults) -> schema.Reference | None:
    texts, drift = results.resolved.reference, results.extracted.reference
    if texts is None or drift is None:
        return None
    return schema.Reference(
        source=texts.source,
        sha256=texts.sha256,
        texts=len(drift.rows),
        tokens=drift.tokens,
        drift=all_as(schema.Measured, drift.drift),
        outputs=optional_as(schema.Outputs, results.evaluated.on_reference),
    )


def _layers(results: StageResults) -> list[schema.Layer]:
    compared, grafts = results.compared, results.effects.grafts
    return [
        schema.Layer(
            index=index,
            name="embeddings" if index == 0 else f"block {index}",
            zone=_zone_of(index, compared.zones).name,
            drift=of_layer.drift,
            noise_floors=of_layer.noise_floors,
            excess_drift=of_layer.excess,
            drifted=of_layer.drifted,
            random_weights_drift=of_layer.random_weights_drift,
            relative_drift=as_schema(schema.Measured, of_layer.relative),
            reproducibility=_measured(compared.reproducibility, index),
            task_consistency=_measured(compared.consistency, index),
            similarity={
                view: as_schema(schema.Similarity, of_view) for view, of_view in compared.similarity[index].items()
            },
            all_tokens=as_schema(schema.AllTokens, compared.all_tokens[index]) if compared.all_tokens else None,
            weights={
                part: as_schema(schema.WeightDrift, moved) for part, moved in results.extracted.weights[index].items()
            },
            probe=as_schema(schema.LayerProbe, compared.probed.layers[index]) if compared.probed else None,
            graft=as_schema(schema.LayerGraft, grafts[index]) if grafts else None,
            sae=_sae(results.saes, results.effects.spliced, index) if results.saes else None,
        )
        for index, of_layer in enumerate(compared.layers)
    ]


def _sae(trained: SaeResults, spliced: Spliced | None, index: int) -> schema.LayerSae | None:
    """A layer's autoencoders, with what the models' answers say of them; None where it has none."""
    if index not in trained.layers:
        return None
    place = trained.layers.index(index)
    layer = trained.comparisons[place]
    of_base = spliced.base[place] if spliced is not None and spliced.base is not None else None
    return schema.LayerSae(
        base=_quality(layer.base, of_base),
        tuned=_quality(layer.tuned, spliced.tuned[place] if spliced is not None else None),
        random_weights=_quality(trained.controls[place], None) if trained.controls is not None else None,
        transfer_fvu=layer.transfer_fvu,
        transfer_excess=layer.transfer_excess,
        withheld=layer.withheld,
        warm_start=optional_as(schema.WarmStart, layer.warm_start),
        match=optional_as(schema.Match, layer.match),
        crosscoder=as_schema(schema.Crosscoder, trained.crosscoders[place]) if trained.crosscoders else None,
        ablation=optional_as(schema.LatentAblation, spliced.ablations[place]) if spliced else None,
    )


def _quality(quality: Quality, loss_recovered: Measured | None) -> schema.SaeQuality:
    return schema.SaeQuality(
        fvu=quality.fvu,
        l0=quality.l0,
        dead_fraction=quality.dead_fraction,
        density=quality.density,
        loss_recovered=optional_as(schema.Measured, loss_recovered),
    )


def _tokens(results: StageResults) -> TokenDrift:
    """The shown texts, with the latents of their tokens where there are autoencoders."""
    shown = results.extracted.tokens
    if results.token_latents is None:
        return shown
    texts = [replace(text, latents=latents) for text, latents in zip(shown.texts, results.token_latents, strict=True)]
    return replace(shown, texts=texts)


def _latents(results: StageResults) -> list[ChangedLatent]:
    """The changed latents, with what they promote where a language model was asked."""
    latents, promoted = results.saes.latents if results.saes else [], results.effects.promoted
    if promoted is None:
        return latents
    return [replace(latent, promotes=tokens) for latent, tokens in zip(latents, promoted, strict=True)]


def _zone_of(index: int, zones: list[Zone]) -> Zone:
    return next(zone for zone in zones if zone.first <= index <= zone.last)


def _measured(by_layer: list[Measured] | None, index: int) -> schema.Measured | None:
    return as_schema(schema.Measured, by_layer[index]) if by_layer else None
