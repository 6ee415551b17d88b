"""Stage `sae`: trains an autoencoder for every layer of both models, together, and measures them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from layerdrift.contract.report import LayerSae, ReportWarning, SaeQuality
from layerdrift.contract.request import AnalysisRequest
from workers.analysis.sae import OUTLIER_FACTOR, Normalisation, SaeConfig, SaeStack, fit_on
from workers.analysis.sae_training import StackTrainer
from workers.models.device import fast_dtype
from workers.scratch import ActivationStore
from workers.stages.extract import SaeRows
from workers.stages.tick import Tick

BATCH_ROWS = 2048
MIN_BATCH_ROWS = 128
NORMALISATION_ROWS = 8192
FEW_DISTINCT_TOKENS = 20_000
MEASURED_ROWS = 2048


@dataclass(frozen=True)
class Trained:
    """The autoencoders' quality by layer, 0 to L."""

    layers: list[LayerSae]
    warnings: list[ReportWarning]


def train_saes(request: AnalysisRequest, rows: SaeRows, tick: Tick) -> Trained:
    """Trains and measures them.

    Raises:
        InputError: there are too few tokens, or k does not fit the width.
    """
    settings = request.analysis.sae
    if settings is None:
        raise ValueError("this request has no autoencoders")
    normalisation = Normalisation.of(_first_rows(rows.train, NORMALISATION_ROWS))
    sites, width = normalisation.mean.shape
    latents = settings.width * width
    if settings.k > latents:
        raise InputError.at("/analysis/sae/k", f"k = {settings.k} is more than the {latents} latents there are")
    batch = min(BATCH_ROWS, rows.train.rows // 2)
    if batch < MIN_BATCH_ROWS:
        raise InputError.at(
            "/dataset",
            f"only {rows.train.rows} tokens to train autoencoders on; give more texts, or set analysis.sae to null",
        )
    config = SaeConfig(
        latents=latents,
        k=settings.k,
        steps=max(1, settings.tokens // batch),
        batch=batch,
        architecture=settings.architecture,
    )
    generator = torch.Generator().manual_seed(request.seed)
    stack = SaeStack.initial(
        normalisation, latents, generator, row_k=settings.k if settings.architecture == "topk" else 0
    )
    trainer = StackTrainer(stack, config, fast_dtype(torch.device("cpu")))
    for step, states in enumerate(rows.train.training_batches(config.steps, batch, generator), start=1):
        trainer.step(states)
        tick(0.9 * step / config.steps, f"step {step} of {config.steps}, {sites} autoencoders of {latents} latents")
    layers = []
    for layer in range(sites // 2):
        layers.append(_measure(stack, trainer.dead_fraction, rows.heldout, layer))
        tick(0.9 + 0.1 * (layer + 1) / (sites // 2), f"measured layer {layer}")
    return Trained(layers, _warnings(rows, trainer))


def _first_rows(store: ActivationStore, count: int) -> Tensor:
    parts: list[Tensor] = []
    for shard in store.shards():
        parts.append(shard)
        if sum(part.shape[1] for part in parts) >= count:
            break
    if not parts:
        raise InputError.at("/dataset", "no token was left to train autoencoders on; give more texts")
    return torch.cat(parts, dim=1)[:, :count]


def _measure(stack: SaeStack, dead_fraction: Tensor, heldout: ActivationStore, layer: int) -> LayerSae:
    base, tuned = layer, stack.sites // 2 + layer
    on_base = fit_on(stack, base, _usual_rows(heldout, stack, base))
    on_tuned = fit_on(stack, tuned, _usual_rows(heldout, stack, tuned))
    transferred = fit_on(stack, base, _usual_rows(heldout, stack, tuned))
    return LayerSae(
        base=SaeQuality(fvu=on_base.fvu, l0=on_base.l0, dead_fraction=float(dead_fraction[base])),
        tuned=SaeQuality(fvu=on_tuned.fvu, l0=on_tuned.l0, dead_fraction=float(dead_fraction[tuned])),
        transfer_fvu=transferred.fvu,
        transfer_excess=transferred.fvu - on_base.fvu,
    )


def _usual_rows(store: ActivationStore, stack: SaeStack, site: int) -> Iterator[Tensor]:
    for shard in store.shards():
        for rows in shard[site].split(MEASURED_ROWS):
            yield rows[stack.usual(site, rows)]


def _warnings(rows: SaeRows, trainer: StackTrainer) -> list[ReportWarning]:
    found = []
    if rows.train.rows < FEW_DISTINCT_TOKENS:
        message = (
            f"the autoencoders saw {rows.train.rows} distinct tokens; below {FEW_DISTINCT_TOKENS} they learn the texts "
            "rather than the features, which shows as a high held-out FVU"
        )
        found.append(ReportWarning(code="few_sae_tokens", message=message))
    if rows.from_trained_rows:
        message = "some texts that the autoencoders were trained on were also trained on by the fine-tune"
        found.append(ReportWarning(code="sae_on_trained_texts", message=message))
    if rows.from_analysed_rows:
        message = (
            "the data set has too few texts to spare: four fifths of the compared tokens trained the autoencoders too"
        )
        found.append(ReportWarning(code="sae_on_analysed_texts", message=message))
    outliers = float(trainer.outlier_share.max())
    if outliers:
        message = (
            f"up to {outliers:.2%} of the tokens of a layer have a norm beyond {OUTLIER_FACTOR:g} medians; they are "
            "left out of the autoencoders' training and measures"
        )
        found.append(ReportWarning(code="outlier_norms", message=message))
    return found
