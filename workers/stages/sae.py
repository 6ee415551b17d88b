"""Stage `sae`: trains an autoencoder for every layer of both models, together, and compares them across the pair.

Stacks have the base model's sites first, layer by layer, then the tuned model's; a third part, where there is one, is
of the base model again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from layerdrift.contract.report import (
    DENSITY_EDGES,
    ChangedLatent,
    LayerSae,
    Match,
    ReportWarning,
    SaeQuality,
    Turnover,
    WarmStart,
)
from layerdrift.contract.request import AnalysisRequest, SaeSettings
from workers.analysis.matching import Fates, beyond_floor, fates_of, matching
from workers.analysis.sae import OUTLIER_FACTOR, Normalisation, SaeConfig, SaeFit, SaeStack, fit_on
from workers.analysis.sae_training import StackTrainer
from workers.models.device import fast_dtype
from workers.scratch import ActivationStore
from workers.stages.extract import ControlRows, SaeRows
from workers.stages.latents import ENCODED_ROWS, Side, chosen_latents, evidence
from workers.stages.probes import LabelDirections
from workers.stages.splicing import Dictionaries
from workers.stages.tick import SharedTicks, Tick

BATCH_ROWS = 2048
MIN_BATCH_ROWS = 128
NORMALISATION_ROWS = 8192
FEW_DISTINCT_TOKENS = 20_000

WARM_SHARE = 0.25
"""Of the steps: how long an autoencoder is trained on after a warm start."""


@dataclass(frozen=True)
class Trained:
    """The autoencoders' quality by layer, 0 to L, and their most changed latents."""

    layers: list[LayerSae]
    latents: list[ChangedLatent]
    dictionaries: Dictionaries
    warnings: list[ReportWarning]


def train_saes(request: AnalysisRequest, rows: SaeRows, directions: LabelDirections | None, tick: Tick) -> Trained:
    """Trains and measures them.

    Args:
        directions: of probes of the labels, where there are any.

    Raises:
        InputError: there are too few tokens, or k does not fit the width.
    """
    settings = request.analysis.sae
    if settings is None:
        raise ValueError("this request has no autoencoders")
    normalisation = Normalisation.of(_first_rows(rows.train, NORMALISATION_ROWS))
    config = _config(settings, normalisation.mean.shape[1], rows.train.rows)
    layers = len(normalisation.scale) // 2
    warm, matched = "warm_start" in settings.lenses, "match" in settings.lenses
    costs = [1.5 if matched else 1.0, WARM_SHARE if warm else 0.0, 0.5 if rows.control else 0.0, 0.2]
    ticks = SharedTicks(tick, costs)
    training = _Training(rows.train, torch.Generator().manual_seed(request.seed), ticks)
    stack = _initial(normalisation, config, request.seed, matched)
    outcome = training.run(stack, config, "training the autoencoders")
    warmed = None
    if warm:
        warmed = stack.of_sites([*range(layers), *range(layers)])
        warmed.norm_limit[layers:] = stack.norm_limit[layers : 2 * layers]
        short = replace(config, steps=max(1, round(WARM_SHARE * config.steps)))
        training.run(warmed, short, "training them on after a warm start")
    else:
        ticks.next("no warm start")
    controls = _controls(rows.control, settings, request.seed, ticks)
    measuring = ticks.next("measuring the autoencoders")
    measured, latents, changed, means = [], [], [], []
    for layer in range(layers):
        lens = _Lens(stack, warmed, rows, layer, layers)
        of_layer = lens.measured(outcome.dead_fraction, matched)
        measured.append(of_layer.model_copy(update={"random_weights": controls[layer] if controls else None}))
        latents += lens.latents(directions)
        changed.append(lens.changed())
        means.append(lens.means())
        measuring((layer + 1) / layers)
    of_sites = torch.cat([torch.stack(side) for side in zip(*means, strict=True)])
    dictionaries = Dictionaries(stack, of_sites, warmed, [one for one, _ in changed], [other for _, other in changed])
    return Trained(measured, latents, dictionaries, _warnings(rows, outcome))


def _config(settings: SaeSettings, width: int, rows: int) -> SaeConfig:
    latents = settings.width * width
    if settings.k > latents:
        raise InputError.at("/analysis/sae/k", f"k = {settings.k} is more than the {latents} latents there are")
    batch = min(BATCH_ROWS, rows // 2)
    if batch < MIN_BATCH_ROWS:
        raise InputError.at(
            "/dataset",
            f"only {rows} tokens to train autoencoders on; give more texts, or set analysis.sae to null",
        )
    steps = max(1, settings.tokens // batch)
    return SaeConfig(latents=latents, k=settings.k, steps=steps, batch=batch, architecture=settings.architecture)


def _initial(normalisation: Normalisation, config: SaeConfig, seed: int, matched: bool) -> SaeStack:
    """The base model's autoencoders, then the tuned model's; for the match, then others of the base model.

    For the match the first ones start from one seed, all others from another: how well the base model's two agree is
    then what chance gives for the base and the tuned model's.
    """
    sites = len(normalisation.scale)
    row_k = config.k if config.architecture == "topk" else 0

    def start(offset: int) -> SaeStack:
        generator = torch.Generator().manual_seed(seed + offset)
        return SaeStack.initial(normalisation, config.latents, generator, row_k)

    if not matched:
        return start(0)
    base, tuned = list(range(sites // 2)), list(range(sites // 2, sites))
    return SaeStack.joined([start(0).of_sites(base), start(1).of_sites([*tuned, *base])])


class _Outcome(NamedTuple):
    """Of a training, by site: shares of dead latents and of rows that were left out. The optimiser's memory is free."""

    dead_fraction: Tensor
    outlier_share: Tensor


class _Training:
    """Trains one stack after another on the stored rows, in an order that goes on where the last one ended."""

    def __init__(self, store: ActivationStore, generator: torch.Generator, ticks: SharedTicks) -> None:
        self._store = store
        self._generator = generator
        self._ticks = ticks

    def run(self, stack: SaeStack, config: SaeConfig, what: str) -> _Outcome:
        tick = self._ticks.next(f"{what}: {stack.sites} of {config.latents} latents, {config.steps} steps")
        trainer = StackTrainer(stack, config, fast_dtype(torch.device("cpu")))
        batches = self._store.training_batches(config.steps, config.batch, self._generator)
        for step, states in enumerate(batches, start=1):
            trainer.step([states[site % len(states)] for site in range(stack.sites)])
            tick(step / config.steps, f"{what}: step {step} of {config.steps}")
        return _Outcome(trainer.dead_fraction, trainer.outlier_share)


def _controls(
    rows: ControlRows | None, settings: SaeSettings, seed: int, ticks: SharedTicks
) -> list[SaeQuality] | None:
    """By layer, of a model that was never trained; the same recipe, and another order of its own."""
    if rows is None:
        ticks.next("no random model")
        return None
    normalisation = Normalisation.of(_first_rows(rows.train, NORMALISATION_ROWS))
    config = _config(settings, normalisation.mean.shape[1], rows.train.rows)
    stack = _initial(normalisation, config, seed, matched=False)
    training = _Training(rows.train, torch.Generator().manual_seed(seed), ticks)
    outcome = training.run(stack, config, "training autoencoders of a random model")
    return [
        _quality(fit_on(stack, site, _usual_rows(rows.heldout, stack, site)), float(outcome.dead_fraction[site]))
        for site in range(stack.sites)
    ]


def _first_rows(store: ActivationStore, count: int) -> Tensor:
    parts: list[Tensor] = []
    for shard in store.shards():
        parts.append(shard)
        if sum(part.shape[1] for part in parts) >= count:
            break
    if not parts:
        raise InputError.at("/dataset", "no token was left to train autoencoders on; give more texts")
    return torch.cat(parts, dim=1)[:, :count]


class _Lens:
    """What one layer's autoencoders say of the pair, on rows that they were not trained on."""

    def __init__(self, stack: SaeStack, warmed: SaeStack | None, rows: SaeRows, layer: int, layers: int) -> None:
        self._stack = stack
        self._rows = rows
        self._layer = layer
        self._base, self._tuned, self._again = layer, layers + layer, 2 * layers + layer
        self._on_base = self._fit(stack, self._base, self._base)
        self._on_tuned = self._fit(stack, self._tuned, self._tuned)
        self._warm = self._warm_starts(warmed) if warmed is not None else None

    def measured(self, dead_fraction: Tensor, matched: bool) -> LayerSae:
        transferred = self._fit(self._stack, self._base, self._tuned)

        return LayerSae(
            base=_quality(self._on_base, float(dead_fraction[self._base])),
            tuned=_quality(self._on_tuned, float(dead_fraction[self._tuned])),
            transfer_fvu=transferred.fvu,
            transfer_excess=transferred.fvu - self._on_base.fvu,
            warm_start=_warm_start(self._warm) if self._warm is not None else None,
            match=self._match() if matched else None,
        )

    def latents(self, directions: LabelDirections | None) -> list[ChangedLatent]:
        """Those of which there are more than the floor has; none without a warm start."""
        if self._warm is None:
            return []
        before = Side(self._stack, self._base, self._base, self._on_base.firing_rates)
        after, fates = self._warm.after, self._warm.tuned
        chosen = chosen_latents(fates, self._warm.floor, before.rates, after.rates)
        rows = self._rows
        return evidence(self._layer, chosen, fates.cosines, before, after, rows.heldout, rows.contexts, directions)

    def means(self) -> tuple[Tensor, Tensor]:
        """Of the held-out rows of usual norm in the base model and in the tuned one, [D] each."""
        return self._on_base.mean, self._on_tuned.mean

    def changed(self) -> tuple[list[int], list[int]]:
        """Of the latents alive after a warm start: the new and shifted ones beyond the floor, and the others."""
        if self._warm is None:
            return [], []
        tuned, floor = self._warm.tuned, self._warm.floor
        beyond = torch.zeros_like(tuned.alive)
        for some, by_chance in ((tuned.new, floor.new), (tuned.shifted, floor.shifted)):
            if beyond_floor(int(some.sum()), int(by_chance.sum())):
                beyond |= some
        return beyond.nonzero()[:, 0].tolist(), (tuned.alive & ~beyond).nonzero()[:, 0].tolist()

    def _warm_starts(self, warmed: SaeStack) -> _WarmStarts:
        """Both went on from the base model's autoencoder: the floor on its own rows, the other on the tuned model's."""
        before = self._stack.W_dec[self._base]
        rates = [self._fit(warmed, site, site).firing_rates for site in (self._base, self._tuned)]
        floor, tuned = (
            fates_of(before, warmed.W_dec[site], self._on_base.firing_rates, after)
            for site, after in zip((self._base, self._tuned), rates, strict=True)
        )
        return _WarmStarts(floor, tuned, Side(warmed, self._tuned, self._tuned, rates[1]))

    def _match(self) -> Match | None:
        dictionaries = self._stack.W_dec
        base, rates = dictionaries[self._base], self._on_base.firing_rates
        again = self._fit(self._stack, self._again, self._base)
        floor = matching(base, dictionaries[self._again], rates, again.firing_rates)
        found = matching(base, dictionaries[self._tuned], rates, self._on_tuned.firing_rates)
        if found is None or floor is None:
            return None
        return Match(
            matched_share=found.matched_share,
            floor_share=floor.matched_share,
            mean_cosine=found.mean_cosine,
            floor_mean_cosine=floor.mean_cosine,
            unmatched_excess=max(0.0, floor.matched_share - found.matched_share),
        )

    def _fit(self, stack: SaeStack, site: int, source: int) -> SaeFit:
        return fit_on(stack, site, _usual_rows(self._rows.heldout, stack, source))


@dataclass(frozen=True)
class _WarmStarts:
    """Fates of one layer's latents in the floor and in the tuned model, and the dictionary that went on there."""

    floor: Fates
    tuned: Fates
    after: Side


def _warm_start(found: _WarmStarts) -> WarmStart:
    tuned, floor = (_counted(fates) for fates in (found.tuned, found.floor))
    return WarmStart(
        tuned=tuned,
        floor=floor,
        new_excess=max(0, tuned.new - floor.new),
        lost_excess=max(0, tuned.lost - floor.lost),
        shifted_excess=max(0, tuned.shifted - floor.shifted),
    )


def _quality(fit: SaeFit, dead_fraction: float) -> SaeQuality:
    return SaeQuality(fvu=fit.fvu, l0=fit.l0, dead_fraction=dead_fraction, density=_density(fit.firing_rates))


def _density(rates: Tensor) -> list[int]:
    """Latents in each of the report's bins of firing rates; [F] -> one more than there are edges."""
    bins = torch.bucketize(rates, torch.tensor(DENSITY_EDGES, dtype=rates.dtype), right=True)
    return bins.bincount(minlength=len(DENSITY_EDGES) + 1).tolist()


def _counted(fates: Fates) -> Turnover:
    return Turnover(**{name: int(getattr(fates, name).sum()) for name in Turnover.model_fields})


def _usual_rows(store: ActivationStore, stack: SaeStack, source: int) -> Iterator[Tensor]:
    """The rows of a site of the pair, without those of a norm that is outlying there."""
    for shard in store.shards():
        for rows in shard[source].split(ENCODED_ROWS):
            yield rows[stack.usual(source, rows)]


def _warnings(rows: SaeRows, outcome: _Outcome) -> list[ReportWarning]:
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
    outliers = float(outcome.outlier_share.max())
    if outliers:
        message = (
            f"up to {outliers:.2%} of the tokens of a layer have a norm beyond {OUTLIER_FACTOR:g} medians; they are "
            "left out of the autoencoders' training and measures"
        )
        found.append(ReportWarning(code="outlier_norms", message=message))
    return found
