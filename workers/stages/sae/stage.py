"""Stage `sae`: trains an autoencoder for every layer of both models, together, and compares them across the pair."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from layerdrift.contract.names import DENSITY_EDGES, SaeRunName
from layerdrift.contract.request import SaeSettings
from workers.analysis.matching import Fates, Matching, beyond_floor, fates_of, matching
from workers.analysis.sae import OUTLIER_FACTOR, Normalisation, SaeConfig, SaeFit, SaeStack, fit_on
from workers.results.autoencoders import ChangedLatent, Crosscoder, Match, SaeRun, SaeRunPoint, Turnover, WarmStart
from workers.results.warnings import ReportWarning
from workers.scratch import ActivationStore
from workers.stages.common.context import StageContext
from workers.stages.common.progress import OnProgress, Spans
from workers.stages.common.site_layout import SiteLayout, joined
from workers.stages.compare.probes import LabelDirections
from workers.stages.extract.heldout_rows import HeldoutRows
from workers.stages.sae.crosscoding import CROSSCODERS, Crosscoding
from workers.stages.sae.findings import Dictionaries, LayerComparison, Quality, SaeResults
from workers.stages.sae.latents import ENCODED_ROWS, Candidate, Side, chosen_latents, evidence, without_false_labels
from workers.stages.sae.rows import ControlRows, SaeRows
from workers.stages.sae.runs import Outcome, Plan, Runs

BATCH_ROWS = 2048
MIN_BATCH_ROWS = 128
NORMALISATION_ROWS = 8192
FEW_DISTINCT_TOKENS = 20_000

TOKENS_PER_LATENT = 100
"""Training tokens for each latent, repetitions counted; Gao et al. 2024 train on thousands."""

WARM_SHARE = 0.25
"""Of the steps: how long an autoencoder is trained on after a warm start."""


OF_BASE, OF_TUNED = "training autoencoders of the base model", "training autoencoders of the tuned model"
FLOOR, WARM_START = "continuing training on the base model", "continuing training on the tuned model"
OF_RANDOM = "training autoencoders of a random model"
MEASURING, MEASURING_CROSSCODERS = "measuring the autoencoders", "measuring the crosscoders"
"""Spans of the progress, beside those of the crosscoders' training."""


def train_saes(context: StageContext, rows: SaeRows, directions: LabelDirections | None) -> SaeResults:
    """Trains and measures them.

    Args:
        directions: of probes of the labels, where there are any.

    Raises:
        InputError: there are too few tokens, or k does not fit the width.
    """
    request, settings = context.request, context.request.analysis.sae
    if settings is None:
        raise ValueError("this request has no autoencoders")
    sample = _first_rows(rows.train, NORMALISATION_ROWS)
    normalisation = Normalisation.of(sample)
    config = _config(settings, normalisation.mean.shape[1], rows.train.rows)
    comparisons = settings.comparisons
    matched = "match" in comparisons
    layers = SiteLayout.of_pair(len(normalisation.scale)).layers
    layout = SiteLayout(layers, again=matched)
    spans = Spans(context.on_progress, _costs(settings, control=rows.control is not None))
    runs = _runs(context, rows.train, settings, spans)
    stack, outcome = _trained(normalisation, config, request.seed, layout, runs)
    trained = ["base", "tuned", *(["base-again"] if matched else [])]
    sae_runs = [_told("training", outcome, _names(rows.layers, *trained))]
    warmed = None
    if "warm_start" in comparisons:
        warmed, warm_outcome = _warm_started(stack, layout, config, outcome, runs)
        sae_runs.append(_told("warm_start", warm_outcome, _names(rows.layers, "base", "tuned")))
    crosscoders: list[Crosscoder] | None = None
    if "crosscoder" in comparisons:
        crosscoding = Crosscoding(normalisation.scale, sample, config, request.seed)
        crossed = crosscoding.train(runs)
        sae_runs.append(_told("crosscoder", crossed, _names(rows.layers, "pair", "base-twice")))
        crosscoders = crosscoding.measured(rows.heldout, crossed, spans.span(MEASURING_CROSSCODERS))
        del crosscoding
    controls = None
    if rows.control is not None:
        controls, control_outcome = _controls(context, rows.control, settings, spans)
        sae_runs.append(_told("random_weights", control_outcome, _names(rows.layers, "random")))
    measured, latents, dictionaries = _measured(
        _Stacks(layout, stack, warmed, outcome.dead_fraction), rows, directions, spans.span(MEASURING)
    )
    warnings = _warnings(rows, config, outcome)
    return SaeResults(rows.layers, measured, controls, crosscoders, latents, dictionaries, sae_runs, warnings)


@dataclass(frozen=True)
class _Stacks:
    """The trained autoencoders. warmed: at the layout's first two parts; None without a warm start."""

    layout: SiteLayout
    stack: SaeStack
    warmed: SaeStack | None
    dead_fraction: Tensor


def _measured(
    stacks: _Stacks, rows: SaeRows, directions: LabelDirections | None, on_progress: OnProgress
) -> tuple[list[LayerComparison], list[ChangedLatent], Dictionaries]:
    """By layer what the comparisons find, the latents that changed most, and the autoencoders for later stages."""
    measured, candidates, changed, means, firing = [], list[Candidate](), [], [], []
    for place in range(len(rows.layers)):
        evaluation = _LayerEvaluation(stacks, rows, place)
        measured.append(evaluation.measured())
        candidates += evaluation.latents(directions)
        changed.append(evaluation.changed())
        means.append(evaluation.means())
        firing.append(evaluation.firing())
        on_progress((place + 1) / len(rows.layers))
    base, tuned = (torch.stack(side) for side in zip(*means, strict=True))
    dictionaries = Dictionaries(
        rows.layers,
        stacks.stack,
        joined(base, tuned),
        stacks.warmed,
        [one for one, _ in changed],
        [other for _, other in changed],
        firing,
    )
    return measured, without_false_labels(candidates), dictionaries


def _runs(context: StageContext, store: ActivationStore, settings: SaeSettings, spans: Spans) -> Runs:
    finished = context.finished if settings.save else None
    return Runs(store, context.request.seed, settings.early_stop, spans, context.checkpointing, finished)


def _trained(
    normalisation: Normalisation, config: SaeConfig, seed: int, layout: SiteLayout, runs: Runs
) -> tuple[SaeStack, Outcome]:
    """Trains all of a pair: first the base model's, which decide on an early stop, then the tuned model's as long.

    So what is trained of the base model is the same whatever it is compared with. For the match the base model's first
    ones start from one seed, all others from another: how well the base model's two agree is then what chance gives for
    the base and the tuned model's.
    """
    base, tuned, layers = layout.base_sites, layout.tuned_sites, layout.layers
    of_base = _initial(normalisation.of_sites(base), config, seed)
    if layout.again:
        of_base = SaeStack.joined([of_base, _initial(normalisation.of_sites(base), config, seed + 1)])
    first = runs.run(of_base, config, Plan(what=OF_BASE, sites=base * (1 + layout.again), reuse=True))
    of_tuned = _initial(normalisation.of_sites(tuned), config, seed + layout.again)
    second = runs.run(of_tuned, config, Plan(what=OF_TUNED, sites=tuned, steps=first.steps))
    stack = SaeStack.joined([of_base.neighbours(0, layers), of_tuned, of_base.neighbours(layers, of_base.sites)])
    own, again = list(range(layers)), list(range(layers, of_base.sites))
    return stack, Outcome.joined([first.of_sites(own), second, first.of_sites(again)])


def _warm_started(
    stack: SaeStack, layout: SiteLayout, config: SaeConfig, outcome: Outcome, runs: Runs
) -> tuple[SaeStack, Outcome]:
    """The base model's autoencoders trained on: first on its own rows, then on the tuned model's; as many steps."""
    of_base, of_tuned = stack.of_sites(layout.base_sites), stack.of_sites(layout.base_sites)
    of_tuned.norm_limit[:] = stack.norm_limit[layout.tuned_sites]
    steps = max(1, round(WARM_SHARE * outcome.steps))
    short = replace(config, steps=steps)
    floor = Plan(what=FLOOR, sites=layout.base_sites, order=1, steps=steps, reuse=True)
    tuned = Plan(what=WARM_START, sites=layout.tuned_sites, order=1, steps=steps)
    outcomes = [runs.run(of_base, short, floor), runs.run(of_tuned, short, tuned)]
    return SaeStack.joined([of_base, of_tuned]), Outcome.joined(outcomes)


def _costs(settings: SaeSettings, control: bool) -> dict[str, float]:
    """By span, of the runs and of what is measured afterwards, in steps at every layer of one model."""
    costs = {OF_BASE: 2.0 if "match" in settings.comparisons else 1.0, OF_TUNED: 1.0}
    if "warm_start" in settings.comparisons:
        costs |= {FLOOR: WARM_SHARE, WARM_START: WARM_SHARE}
    if "crosscoder" in settings.comparisons:
        costs |= {CROSSCODERS: 4.0, MEASURING_CROSSCODERS: 0.4}
    if control:
        costs[OF_RANDOM] = 1.0
    return costs | {MEASURING: 0.4}


def _names(layers: list[int], *groups: str) -> list[str]:
    return [f"{group}/layer-{layer:02d}" for group in groups for layer in layers]


def _told(name: SaeRunName, outcome: Outcome, autoencoders: list[str]) -> SaeRun:
    points = [
        SaeRunPoint(step=(place + 1) * outcome.span, unexplained=[round(value, 5) for value in span])
        for place, span in enumerate(outcome.unexplained.tolist())
    ]
    return SaeRun(
        name=name,
        steps=outcome.steps,
        planned_steps=outcome.config.steps,
        batch=outcome.config.batch,
        learning_rate=outcome.config.learning_rate,
        autoencoders=autoencoders,
        curve=points,
    )


def _config(settings: SaeSettings, width: int, rows: int) -> SaeConfig:
    latents = settings.width * width
    if settings.k > latents:
        raise InputError.at("/analysis/sae/k", f"k = {settings.k} exceeds the number of latents ({latents})")
    batch = min(BATCH_ROWS, rows // 2)
    if batch < MIN_BATCH_ROWS:
        raise InputError.at(
            "/dataset",
            f"only {rows} tokens to train autoencoders on; use more texts, or set analysis.sae to null",
        )
    steps = max(1, settings.tokens // batch)
    return SaeConfig(latents=latents, k=settings.k, steps=steps, batch=batch, architecture=settings.architecture)


def _initial(normalisation: Normalisation, config: SaeConfig, seed: int) -> SaeStack:
    """Autoencoders before their training, from one seed."""
    row_k = config.k if config.architecture == "topk" else 0
    return SaeStack.initial(normalisation, config.latents, torch.Generator().manual_seed(seed), row_k)


def _controls(
    context: StageContext, rows: ControlRows, settings: SaeSettings, spans: Spans
) -> tuple[list[Quality], Outcome]:
    """By layer, of a model that was never trained; the same recipe, and another order of its own."""
    normalisation = Normalisation.of(_first_rows(rows.train, NORMALISATION_ROWS))
    config = _config(settings, normalisation.mean.shape[1], rows.train.rows)
    stack = _initial(normalisation, config, context.request.seed)
    every = list(range(stack.sites))
    outcome = _runs(context, rows.train, settings, spans).run(
        stack, config, Plan(what=OF_RANDOM, sites=every, reuse=True)
    )
    found = [
        _quality(fit_on(stack, site, _inlier_rows(rows.heldout, stack, site)), float(outcome.dead_fraction[site]))
        for site in range(stack.sites)
    ]
    return found, outcome


def _first_rows(store: ActivationStore, count: int) -> Tensor:
    parts: list[Tensor] = []
    for shard in store.shards():
        parts.append(shard)
        if sum(part.shape[1] for part in parts) >= count:
            break
    if not parts:
        raise InputError.at("/dataset", "no tokens are left to train autoencoders on; use more texts")
    return torch.cat(parts, dim=1)[:, :count]


class _LayerEvaluation:
    """What one layer's autoencoders say of the pair, on rows that they were not trained on.

    Args:
        place: of the layer among those that have autoencoders.
    """

    def __init__(self, stacks: _Stacks, rows: SaeRows, place: int) -> None:
        stack, warmed = stacks.stack, stacks.warmed
        self._stacks = stacks
        self._stack = stack
        self._rows = rows
        self._place = place
        self._base, self._tuned = stacks.layout.base(place), stacks.layout.tuned(place)
        self._on_base = self._fit(stack, self._base, self._base)
        self._on_tuned = self._fit(stack, self._tuned, self._tuned)
        self._warm = self._warm_starts(warmed) if warmed is not None else None
        self._matched = self._match() if stacks.layout.again else None
        self._withheld = withheld(self._matched, _counted(self._warm.floor) if self._warm is not None else None)

    def measured(self) -> LayerComparison:
        dead_fraction = self._stacks.dead_fraction
        transferred = fit_on(self._refitted(), 0, _inlier_rows(self._rows.heldout, self._stack, self._tuned))
        return LayerComparison(
            base=_quality(self._on_base, float(dead_fraction[self._base])),
            tuned=_quality(self._on_tuned, float(dead_fraction[self._tuned])),
            transfer_fvu=transferred.fvu,
            transfer_excess=transferred.fvu - self._on_base.fvu,
            warm_start=_warm_start(self._warm, self._withheld is None) if self._warm is not None else None,
            match=self._told_match(),
            withheld=self._withheld,
        )

    def _refitted(self) -> SaeStack:
        """The base model's autoencoder for inputs of the tuned model's mean and scale: a shift is no new feature."""
        stack, base = self._stack, self._base
        found = stack.of_sites([base])
        scale = float(stack.scale[base]) * (self._on_tuned.spread / self._on_base.spread) ** 0.5
        shift = self._on_tuned.mean / scale - self._on_base.mean / float(stack.scale[base])
        found.b_dec[0] += shift.to(found.b_dec.dtype)
        found.scale[0] = scale
        return found

    def _told_match(self) -> Match | None:
        if self._matched is None or self._withheld is None:
            return self._matched
        return replace(self._matched, unmatched_excess=None, unmatched_error=None)

    def latents(self, directions: LabelDirections | None) -> list[Candidate]:
        """Those of which there are more than the floor has; none without a warm start, or where they are withheld."""
        if self._warm is None or self._withheld is not None:
            return []
        before = Side(self._stack, self._base, self._base, self._on_base.firing_rates)
        after, fates = self._warm.after, self._warm.tuned
        chosen = chosen_latents(fates, self._warm.floor, before.rates, after.rates)
        rows, layer = self._rows, self._rows.layers[self._place]
        heldout = HeldoutRows(rows.heldout, rows.contexts, rows.layers)
        return evidence(layer, chosen, fates.cosines, before, after, heldout, directions)

    def means(self) -> tuple[Tensor, Tensor]:
        """Of the held-out rows of usual norm in the base model and in the tuned one, [D] each."""
        return self._on_base.mean, self._on_tuned.mean

    def firing(self) -> Tensor:
        """Of the latents after a warm start, logarithms of how often and how strongly they fire; [F, 2]."""
        if self._warm is None:
            return torch.zeros(0, 2)
        rates, strengths = self._warm.after.rates, self._warm.strengths
        return torch.stack([rates.clamp_min(1e-9).log(), strengths.clamp_min(1e-9).log()], 1)

    def changed(self) -> tuple[list[int], list[int]]:
        """Of the latents alive after a warm start: the new and shifted ones beyond the floor, and the others."""
        if self._warm is None or self._withheld is not None:
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
        fits = [self._fit(warmed, site, site) for site in (self._base, self._tuned)]
        floor, tuned = (
            fates_of(before, warmed.W_dec[site], self._on_base.firing_rates, after.firing_rates)
            for site, after in zip((self._base, self._tuned), fits, strict=True)
        )
        return _WarmStarts(
            floor, tuned, Side(warmed, self._tuned, self._tuned, fits[1].firing_rates), fits[1].strengths
        )

    def _match(self) -> Match | None:
        dictionaries = self._stack.W_dec
        base, rates = dictionaries[self._base], self._on_base.firing_rates
        own = self._stacks.layout.base_again(self._place)
        again = self._fit(self._stack, own, self._base)
        floor = matching(base, dictionaries[own], rates, again.firing_rates)
        found = matching(base, dictionaries[self._tuned], rates, self._on_tuned.firing_rates)
        if found is None or floor is None:
            return None
        return Match(
            matched_share=found.matched_share,
            floor_share=floor.matched_share,
            mean_cosine=found.mean_cosine,
            floor_mean_cosine=floor.mean_cosine,
            unmatched_excess=floor.matched_share - found.matched_share,
            unmatched_error=math.hypot(_share_error(floor), _share_error(found)),
        )

    def _fit(self, stack: SaeStack, site: int, source: int) -> SaeFit:
        return fit_on(stack, site, _inlier_rows(self._rows.heldout, stack, source))


@dataclass(frozen=True)
class _WarmStarts:
    """Fates of one layer's latents in the floor and in the tuned model, and the dictionary that went on there.

    strengths: of its latents, mean activations where they fire, [F].
    """

    floor: Fates
    tuned: Fates
    after: Side
    strengths: Tensor


MIN_FLOOR_SHARE, MIN_RETAINED_SHARE = 0.1, 0.5
"""With fewer latents that come again from another seed, or that stay while training goes on on the same rows, what an
autoencoder finds is a matter of its seed: counts of new and lost latents then say little."""


def withheld(match: Match | None, floor: Turnover | None) -> str | None:
    """Why counts beyond the floor and changed latents are not told; None where they are, or where there are none."""
    if match is not None and match.floor_share < MIN_FLOOR_SHARE:
        return (
            f"only {match.floor_share:.1%} of the base model's latents reappear with another seed (below "
            f"{MIN_FLOOR_SHARE:.0%}): which latents are new or lost then depends on the seed. More tokens "
            "(analysis.sae.tokens) or a smaller k (analysis.sae.k) make them more alike"
        )
    if floor is None:
        return None
    alive = floor.retained + floor.shifted + floor.lost
    if alive and floor.retained < MIN_RETAINED_SHARE * alive:
        return (
            f"only {floor.retained / alive:.0%} of the base model's latents survive further training on its own "
            f"tokens (below {MIN_RETAINED_SHARE:.0%}): which latents are new or lost is then a matter of chance. "
            "More tokens (analysis.sae.tokens) make them stable"
        )
    return None


def _warm_start(found: _WarmStarts, tell: bool) -> WarmStart:
    """The counts, and where they mean something what lies between them, with the error of a difference of counts."""
    tuned, floor = (_counted(fates) for fates in (found.tuned, found.floor))
    if not tell:
        return WarmStart(tuned=tuned, floor=floor)
    return WarmStart(
        tuned=tuned,
        floor=floor,
        new_excess=tuned.new - floor.new,
        new_error=math.sqrt(tuned.new + floor.new),
        lost_excess=tuned.lost - floor.lost,
        lost_error=math.sqrt(tuned.lost + floor.lost),
        shifted_excess=tuned.shifted - floor.shifted,
        shifted_error=math.sqrt(tuned.shifted + floor.shifted),
    )


def _share_error(found: Matching) -> float:
    """One standard error of the share of latents that are matched."""
    return math.sqrt(found.matched_share * (1 - found.matched_share) / found.latents)


def _quality(fit: SaeFit, dead_fraction: float) -> Quality:
    return Quality(fvu=fit.fvu, l0=fit.l0, dead_fraction=dead_fraction, density=_density(fit.firing_rates))


def _density(rates: Tensor) -> list[int]:
    """Latents in each of the report's bins of firing rates; [F] -> one more than there are edges."""
    bins = torch.bucketize(rates, torch.tensor(DENSITY_EDGES, dtype=rates.dtype), right=True)
    return bins.bincount(minlength=len(DENSITY_EDGES) + 1).tolist()


def _counted(fates: Fates) -> Turnover:
    return Turnover(
        retained=int(fates.retained.sum()),
        shifted=int(fates.shifted.sum()),
        lost=int(fates.lost.sum()),
        new=int(fates.new.sum()),
    )


def _inlier_rows(store: ActivationStore, stack: SaeStack, source: int) -> Iterator[Tensor]:
    """The rows of a site of the pair, without those of a norm that is outlying there."""
    for shard in store.shards():
        for rows in shard[source].split(ENCODED_ROWS):
            yield rows[stack.inliers(source, rows)]


def _warnings(rows: SaeRows, config: SaeConfig, outcome: Outcome) -> list[ReportWarning]:
    found = []
    planned = config.steps * config.batch // config.latents
    if planned < TOKENS_PER_LATENT:
        message = (
            f"{planned} training tokens for each of {config.latents} latents; below {TOKENS_PER_LATENT}, many latents "
            "are not learnt. Raise analysis.sae.tokens, or lower analysis.sae.width"
        )
        found.append(ReportWarning(code="few_tokens_per_latent", message=message))
    if rows.train.rows < FEW_DISTINCT_TOKENS:
        message = (
            f"the autoencoders saw {rows.train.rows} distinct tokens; below {FEW_DISTINCT_TOKENS} they learn the texts "
            "rather than the features, which shows as a high held-out FVU"
        )
        found.append(ReportWarning(code="few_sae_tokens", message=message))
    if rows.from_trained_rows:
        message = "some texts used to train the autoencoders were also used to train the fine-tune"
        found.append(ReportWarning(code="sae_on_trained_texts", message=message))
    if rows.from_analysed_rows:
        message = (
            "the data set has too few spare texts: four fifths of the compared tokens were also used to train the "
            "autoencoders"
        )
        found.append(ReportWarning(code="sae_on_analysed_texts", message=message))
    outliers = float(outcome.outlier_share.max())
    if outliers:
        message = (
            f"up to {outliers:.2%} of the tokens of a layer have a norm above {OUTLIER_FACTOR:g} times the median; "
            "they are excluded from the autoencoders' training and measures"
        )
        found.append(ReportWarning(code="outlier_norms", message=message))
    return found
