"""Stage `report`: the results of all stages as one document. Draws nothing and stores nothing."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from backends.jobs.records import JobRecord
from layerdrift import __version__
from layerdrift.contract.report import (
    ChangedLatent,
    DatasetInfo,
    Engine,
    Layer,
    LayerSae,
    Measured,
    PendingStage,
    Reference,
    Report,
    SaeQuality,
    Timings,
    TokenDrift,
    TokenLatents,
    TokenText,
    Trajectory,
    Zone,
)
from layerdrift.contract.request import AnalysisRequest
from workers.models.device import best_device, device_name, peak_memory_bytes
from workers.stages.causal.stage import Effects
from workers.stages.common.inputs import Resolved
from workers.stages.compare.head_outputs import Evaluated
from workers.stages.compare.stage import Compared
from workers.stages.extract.stage import Extracted
from workers.stages.finetune.stage import FineTuned
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


def build_report(
    record: JobRecord,
    results: StageResults,
    stage_seconds: dict[str, float],
    pending: Sequence[PendingStage] = (),
) -> Report:
    """The report of an analysis; a preliminary one where stages are pending."""
    request, resolved, extracted = record.request, results.resolved, results.extracted
    compared, effects = results.compared, results.effects
    finetuned, saes = results.finetuned, results.saes
    return Report(
        status="preliminary" if pending else "complete",
        pending=list(pending),
        analysis_id=record.id,
        name=record.title,
        compared=record.compared or request.compared,
        created_at=datetime.now(UTC),
        engine=_engine(),
        request=request,
        models={"base": extracted.models["base"], "tuned": extracted.models["tuned"]},
        dataset=_dataset(request, resolved, extracted, results.rows),
        layers=_layers(results),
        cross_layer_cka=compared.cross_layer_cka,
        zones=compared.zones,
        noise_floors=compared.noise_floors,
        outputs=results.evaluated.outputs,
        reference=_reference(results),
        finetune=finetuned.run if finetuned else None,
        trajectory=results.trajectory,
        probes=compared.probed.info if compared.probed else None,
        causal=effects.causal,
        recommendation=effects.recommendation,
        tokens=_tokens(results),
        latents=_latents(results),
        sae_runs=saes.runs if saes else [],
        autoencoders=results.stored.autoencoders if results.stored else None,
        latent_table=results.stored.latents if results.stored else None,
        warnings=[
            *resolved.warnings,
            *extracted.warnings,
            *compared.warnings,
            *results.evaluated.warnings,
            *(saes.warnings if saes else []),
            *effects.warnings,
        ],
        timings=Timings(stages=stage_seconds, peak_memory_bytes=peak_memory_bytes()),
    )


def _engine() -> Engine:
    return Engine(
        version=__version__,
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        device=device_name(best_device()),
        threads=torch.get_num_threads(),
    )


def _dataset(request: AnalysisRequest, resolved: Resolved, extracted: Extracted, rows: SaeRows | None) -> DatasetInfo:
    counts = extracted.counts
    return DatasetInfo(
        source=request.dataset.uri or "inline",
        sha256=resolved.dataset_sha256,
        rows=resolved.usable_rows,
        analysed_texts=extracted.moments["mean"].n,
        analysed_tokens=extracted.moments["token"].n,
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


def _reference(results: StageResults) -> Reference | None:
    texts, drift = results.resolved.reference, results.extracted.reference
    if texts is None or drift is None:
        return None
    return Reference(
        source=texts.source,
        sha256=texts.sha256,
        texts=len(drift.rows),
        tokens=drift.tokens,
        drift=drift.drift,
        outputs=results.evaluated.on_reference,
    )


def _layers(results: StageResults) -> list[Layer]:
    compared, grafts = results.compared, results.effects.grafts
    return [
        Layer(
            index=index,
            name="embeddings" if index == 0 else f"block {index}",
            zone=_zone_of(index, compared.zones).name,
            drift=of_layer.drift,
            noise_floors=of_layer.noise_floors,
            excess_drift=of_layer.excess,
            drifted=of_layer.drifted,
            random_weights_drift=of_layer.random_weights_drift,
            relative_drift=of_layer.relative,
            reproducibility=compared.reproducibility[index] if compared.reproducibility else None,
            task_consistency=compared.consistency[index] if compared.consistency else None,
            similarity=compared.similarity[index],
            all_tokens=compared.all_tokens[index] if compared.all_tokens else None,
            weights=results.extracted.weights[index],
            probe=compared.probed.layers[index] if compared.probed else None,
            graft=grafts[index] if grafts else None,
            sae=_sae(results.saes, results.effects.spliced, index) if results.saes else None,
        )
        for index, of_layer in enumerate(compared.layers)
    ]


def _sae(trained: SaeResults, spliced: Spliced | None, index: int) -> LayerSae:
    """A layer's autoencoders, with what the models' answers say of them."""
    layer = trained.layers[index]
    of_base = spliced.base[index] if spliced is not None and spliced.base is not None else None
    return LayerSae(
        base=_quality(layer.base, of_base),
        tuned=_quality(layer.tuned, spliced.tuned[index] if spliced is not None else None),
        random_weights=_quality(trained.controls[index], None) if trained.controls is not None else None,
        transfer_fvu=layer.transfer_fvu,
        transfer_excess=layer.transfer_excess,
        withheld=layer.withheld,
        warm_start=layer.warm_start,
        match=layer.match,
        crosscoder=trained.crosscoders[index] if trained.crosscoders is not None else None,
        ablation=spliced.ablations[index] if spliced is not None else None,
    )


def _quality(quality: Quality, loss_recovered: Measured | None) -> SaeQuality:
    return SaeQuality(
        fvu=quality.fvu,
        l0=quality.l0,
        dead_fraction=quality.dead_fraction,
        density=quality.density,
        loss_recovered=loss_recovered,
    )


def _tokens(results: StageResults) -> TokenDrift:
    """The shown texts, with the latents of their tokens where there are autoencoders."""
    shown = results.extracted.tokens
    if results.token_latents is None:
        return shown
    texts = [
        TokenText(text=one.text, tokens=one.tokens, special=one.special, drift=one.drift, latents=latents)
        for one, latents in zip(shown.texts, results.token_latents, strict=True)
    ]
    return TokenDrift(source=shown.source, texts=texts)


def _latents(results: StageResults) -> list[ChangedLatent]:
    """The changed latents, with what they promote where a language model was asked."""
    latents, promoted = results.saes.latents if results.saes else [], results.effects.promoted
    if promoted is None:
        return latents
    return [latent.model_copy(update={"promotes": tokens}) for latent, tokens in zip(latents, promoted, strict=True)]


def _zone_of(index: int, zones: list[Zone]) -> Zone:
    return next(zone for zone in zones if zone.first <= index <= zone.last)
