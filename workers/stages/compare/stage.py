"""Stage `compare`: similarities of layers become drift, zones and advice, beside distances of texts and probes."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from layerdrift.contract.names import MUCH_MOVED, MeasureName, ViewName
from layerdrift.contract.request import NoiseFloorName
from workers.analysis.geometry import NEIGHBOURS, Geometry, PairDistances
from workers.analysis.similarity import SiteSimilarity, cross_site_cka, drift_of
from workers.analysis.zones import GENERAL_CEILING, fit_zones, ramp_zones
from workers.analysis.zones import Zone as FittedZone
from workers.results.effects import Recommendation
from workers.results.measured import Measured
from workers.results.similarity import AllTokens, CrossLayerCka, NoiseFloor, Similarity, Zone
from workers.results.warnings import ReportWarning
from workers.stages.common.context import PairContext
from workers.stages.common.intervals import MIN_GROUPS, measured, ratio, shared_change
from workers.stages.common.left_out import LeftOut
from workers.stages.common.progress import OnProgress
from workers.stages.compare.disagreement import similarity_warnings
from workers.stages.compare.probes import Probed, probe
from workers.stages.compare.roles import role_warnings
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.nulls import MeasuredNull, Nulls, SeedChanges

NUMERICAL_FACTOR, NUMERICAL_FACTOR_L2 = 4.0, 2.0
"""Another rounding of a model may move it twice as far as the numerical null did: twice its relative L2, four times its
1 - CKA, which grows with the square."""

LEAST_SCALE = 0.01
"""Where random weights are nearer to the base model than this there is no scale from one to the other."""

SUPPORTED = 0.8
"""Steps that fewer fresh samples would give again give way to a ramp, where one describes the curve better."""

ALL_TOKENS_GAP = 0.01
"""Drift with all tokens that differs by more from drift without the outliers is worth a warning."""

DRAWS = 400
"""Fresh samples that are drawn for the support of zones."""

MOMENT_MEASURES: tuple[MeasureName, ...] = (
    "cosine",
    "cosine_centred",
    "relative_l2",
    "relative_l2_centred",
    "cka",
    "cka_standardized",
    "procrustes",
)
GEOMETRY_MEASURES: tuple[MeasureName, ...] = ("rsa", "knn_jaccard")


@dataclass(frozen=True)
class LayerDrift:
    """What the token view says of one layer's drift; see `docs/numbers.md`."""

    drift: float
    noise_floors: dict[NoiseFloorName, float]
    excess: float
    drifted: bool
    random_weights_drift: float | None
    relative: Measured


@dataclass(frozen=True)
class Compared:
    """What is known of each layer without autoencoders; lists run over layers 0 to L."""

    similarity: list[dict[ViewName, Similarity]]
    all_tokens: list[AllTokens] | None
    layers: list[LayerDrift]
    consistency: list[Measured] | None
    reproducibility: list[Measured] | None
    probed: Probed | None
    noise_floors: list[NoiseFloor]
    zones: list[Zone]
    cross_layer_cka: CrossLayerCka
    recommendation: Recommendation
    warnings: list[ReportWarning]

    @property
    def drift(self) -> list[float]:
        """Of every layer."""
        return [layer.drift for layer in self.layers]


def compare(context: PairContext, extracted: Extracted) -> Compared:
    """Judges the layers by their similarities and the sampled texts."""
    request, on_progress = context.request, context.on_progress
    views = extracted.views
    geometry = _geometry(extracted, on_progress)
    similarity = [
        {
            view: _similarity(
                measured_view.sites[layer],
                measured_view.left_out.of_layer(layer),
                measured_view.left_out.whole,
                geometry[layer] if view == "mean" else None,
                _null_site(extracted.nulls.measured, view, layer),
            )
            for view, measured_view in views.items()
        }
        for layer in range(len(views["token"].sites))
    ]
    token = views["token"].sites
    layers = [
        _layer_drift(site, similarity[layer]["token"].cka, extracted.nulls, layer) for layer, site in enumerate(token)
    ]
    zones = _zones(layers, views["token"].left_out, request.seed)
    identical = all(site.relative_l2 == 0 for site in token)
    probed = _probes(context, extracted)
    all_tokens = _all_tokens(extracted)
    return Compared(
        similarity=similarity,
        all_tokens=all_tokens,
        layers=layers,
        consistency=_consistency(extracted.nulls.seeds),
        reproducibility=_reproducibility(extracted.nulls.seeds),
        probed=probed,
        noise_floors=[measured.null for measured in extracted.nulls.measured],
        zones=zones,
        cross_layer_cka=_cross_layer(extracted),
        recommendation=recommended(zones, token, [layer.drift for layer in layers], identical),
        warnings=[
            *_undefined(token),
            *_excluded_tokens(extracted, all_tokens, [layer.drift for layer in layers]),
            *(_identical(extracted) if identical else similarity_warnings(similarity)),
            *_below_resolution(layers, identical),
            *role_warnings(similarity),
        ],
    )


def _all_tokens(extracted: Extracted) -> list[AllTokens] | None:
    """The token view with the tokens that are left out elsewhere."""
    if extracted.all_tokens is None:
        return None
    return [AllTokens(drift=drift_of(site), relative_l2=site.relative_l2) for site in extracted.all_tokens]


def _excluded_tokens(
    extracted: Extracted, all_tokens: list[AllTokens] | None, drift: list[float]
) -> list[ReportWarning]:
    """Says where the drift would be another with all tokens in it."""
    if all_tokens is None:
        return []
    gaps = [abs(whole.drift - own) for whole, own in zip(all_tokens, drift, strict=True)]
    layers = [str(layer) for layer, gap in enumerate(gaps) if gap > ALL_TOKENS_GAP]
    if not layers:
        return []
    most = gaps.index(max(gaps))
    counts = extracted.counts
    message = (
        f"{counts.excluded_share:.1%} of the tokens are not compared: {counts.first} first tokens of texts (of "
        f"causal models) and {counts.outliers} outliers, whose large norm would dominate all others. Including them "
        f"would change the drift at layer {', '.join(layers)}, most at layer {most}: {all_tokens[most].drift:.3f} "
        f"instead of {drift[most]:.3f}"
    )
    return [ReportWarning(code="excluded_tokens", message=message)]


def _groups(extracted: Extracted) -> Tensor:
    """Of the sampled texts, the group of each, [N]."""
    return extracted.tokenization.groups_of(extracted.analysed)[torch.tensor(extracted.text_sample.texts)]


@dataclass(frozen=True)
class _SiteGeometry:
    """Distances between texts at one layer: of all, and with each group left out."""

    whole: Geometry
    left_out: list[Geometry]


def _geometry(extracted: Extracted, on_progress: OnProgress) -> list[_SiteGeometry]:
    sample = extracted.text_sample
    groups = _groups(extracted)
    present = groups.unique()

    def of_layer(rows: tuple[Tensor, Tensor]) -> _SiteGeometry:
        distances = PairDistances(*rows)
        left_out = [distances.geometry(groups != group) for group in present] if len(present) >= MIN_GROUPS else []
        return _SiteGeometry(distances.geometry(), left_out)

    found = []
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # sorting and counting use one core each
        for layer, one in enumerate(threads.map(of_layer, zip(*sample.rows, strict=True))):
            found.append(one)
            on_progress(0.7 * (layer + 1) / len(sample.rows.base), f"distances between texts at layer {layer}")
    return found


def _null_site(nulls: list[MeasuredNull], view: ViewName, layer: int) -> dict[MeasureName, float | None]:
    """The numbers of the numerical null; none without it."""
    null = next((null for null in nulls if null.null.name == "numerical"), None)
    if null is None or view not in null.similarity:
        return {}
    site, geometry = null.similarity[view][layer], null.geometry[layer]
    of_moments: dict[MeasureName, float | None] = {name: getattr(site, name) for name in MOMENT_MEASURES}
    return of_moments | {name: getattr(geometry, name) for name in GEOMETRY_MEASURES}


def _similarity(
    site: SiteSimilarity,
    left_out: list[SiteSimilarity],
    whole: bool,
    geometry: _SiteGeometry | None,
    null: dict[MeasureName, float | None],
) -> Similarity:
    def number(measure: MeasureName) -> Measured:
        others = [getattr(one, measure) for one in left_out]
        return measured(getattr(site, measure), others, site.undefined, null.get(measure), corrected=whole)

    found = {measure: number(measure) for measure in MOMENT_MEASURES}
    if geometry is not None:
        reason = f"fewer than {NEIGHBOURS + 2} texts, or all at the same point"
        rsa, knn = ([getattr(one, measure) for one in geometry.left_out] for measure in GEOMETRY_MEASURES)
        found["rsa"] = measured(geometry.whole.rsa, rsa, reason, null.get("rsa"))
        # how many of ten nearest texts are shared depends on how many texts there are: no bias to take out
        found["knn_jaccard"] = measured(
            geometry.whole.knn_jaccard, knn, reason, null.get("knn_jaccard"), corrected=False
        )
    return Similarity(**found)


def _layer_drift(site: SiteSimilarity, cka: Measured, nulls: Nulls, layer: int) -> LayerDrift:
    """Displacement: the lower end of the drift's interval must be above the numerical resolution.

    Fine-tunes with other seeds are no bound: two of them differ by the noise of both seeds, however far both moved.
    """
    drift = drift_of(site)
    by_null = {null.null.name: drift_of(null.similarity["token"][layer]) for null in nulls.measured}
    null = by_null.get("numerical", 0.0)
    low = drift if cka.high is None else 1 - cka.high
    factor = NUMERICAL_FACTOR_L2 if site.cka is None else NUMERICAL_FACTOR
    drifted = low > factor * null and drift > 0
    left = nulls.random_weights_drift[layer]
    return LayerDrift(
        drift=drift,
        noise_floors=by_null,
        excess=max(0.0, drift - null) if drifted else 0.0,
        drifted=drifted,
        random_weights_drift=left,
        relative=_relative(cka, left),
    )


def _relative(cka: Measured, random_weights_drift: float | None) -> Measured:
    """Drift on the scale from identical (0) to random weights (1)."""
    if cka.value is None or random_weights_drift is None:
        return Measured(value=None, undefined=cka.undefined or "a copy with random weights could not be compared")
    if random_weights_drift < LEAST_SCALE:
        return Measured(value=None, undefined="random weights change almost nothing here, so there is no scale")
    return Measured(
        value=(1 - cka.value) / random_weights_drift,
        low=None if cka.high is None else (1 - cka.high) / random_weights_drift,
        high=None if cka.low is None else (1 - cka.low) / random_weights_drift,
    )


def _zones(layers: list[LayerDrift], left_out: LeftOut, seed: int) -> list[Zone]:
    """The zones of the excess drift, each with the share of fresh samples of texts that would give it again.

    Where steps would not come again and a ramp describes the curve better, the zones are a level and a ramp.
    """
    drift = [layer.drift for layer in layers]
    fresh = _fresh_curves(drift, left_out, seed)

    def excess(curve: list[float]) -> list[float]:
        return [
            max(0.0, value - layer.noise_floors.get("numerical", 0.0)) if layer.drifted else 0.0
            for value, layer in zip(curve, layers, strict=True)
        ]

    def told(zones: list[FittedZone], fits: list[list[FittedZone]]) -> list[Zone]:
        spans = [{(one.first, one.last) for one in fit} for fit in fits]
        return [
            Zone(
                name=zone.name,
                first=zone.first,
                last=zone.last,
                level=zone.level,
                support=sum((zone.first, zone.last) in some for some in spans) / len(spans) if spans else None,
            )
            for zone in zones
        ]

    steps = told(fit_zones(excess(drift), drift), [fit_zones(excess(curve), curve) for curve in fresh])
    supported = all(zone.support is None or zone.support >= SUPPORTED for zone in steps)
    ramp = None if supported else ramp_zones(excess(drift), drift)
    if ramp is None:
        return steps
    return told(ramp, [ramp_zones(excess(curve), curve) or [] for curve in fresh])


def _fresh_curves(drift: list[float], left_out: LeftOut, seed: int) -> list[list[float]]:
    """Drift curves that other samples of as many texts might give; none without intervals.

    Normal around the measured curve, with twice its jackknife covariance over layers: a fresh sample differs from this
    one by its own chance and by this one's.
    """
    if not left_out.by_group:
        return []
    leave = torch.tensor([[drift_of(site) for site in sites] for sites in left_out.by_group], dtype=torch.float64)
    groups = len(leave)
    spread = (leave - leave.mean(0)) * (2 * (groups - 1) / groups) ** 0.5
    weights = torch.randn(DRAWS, groups, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    curves: list[list[float]] = (torch.tensor(drift, dtype=torch.float64) + weights @ spread).tolist()
    return curves


def _consistency(found: SeedChanges | None) -> list[Measured] | None:
    if found is None:
        return None
    return [ratio(sums, found.counts, bounds=(-1.0, 1.0)) for sums in found.cosines.T]


def _reproducibility(found: SeedChanges | None) -> list[Measured] | None:
    """By layer, the share of the squared change that seeds make alike, with its interval over texts and seeds."""
    if found is None:
        return None
    return [shared_change(of_layer) for of_layer in found.products.unbind(1)]


def _probes(context: PairContext, extracted: Extracted) -> Probed | None:
    request, resolved, on_progress = context.request, context.resolved, context.on_progress
    if not request.analysis.probes:
        return None
    sample = extracted.text_sample
    labels = [resolved.split.analysed[text].label for text in sample.texts]
    units = extracted.tokenization.units_of(extracted.analysed)[torch.tensor(sample.texts)]
    return probe(sample.rows, labels, units, request.seed, lambda share: on_progress(0.7 + 0.3 * share, "probes"))


def _identical(extracted: Extracted) -> list[ReportWarning]:
    """Says what is the same: the activations, and where it is so the files."""
    message = (
        "both models have identical activations at every layer: any difference between the checkpoints is in their "
        "heads"
    )
    bodies = ReportWarning(code="identical_bodies", message=message)
    if extracted.models["base"].fingerprint != extracted.models["tuned"].fingerprint:
        return [*_identical_weights(extracted), bodies]
    files = ReportWarning(code="identical_models", message="both checkpoints are the same files: nothing was tuned")
    return [files, bodies]


def _identical_weights(extracted: Extracted) -> list[ReportWarning]:
    """Says that other files hold the same weights: an adapter that was not applied, or a training without effect."""
    parts = [part.relative_frobenius for layer in extracted.weights for part in layer.values()]
    if not parts or any(part != 0 for part in parts):
        return []
    message = (
        "the checkpoints are different files, but the weights of every block are the base's, bit for bit: was the "
        "adapter merged, and did the training train anything?"
    )
    return [ReportWarning(code="identical_weights", message=message)]


def _below_resolution(layers: list[LayerDrift], identical: bool) -> list[ReportWarning]:
    """Layers that moved, but no farther than rounding moves them."""
    names = [str(index) for index, layer in enumerate(layers) if layer.drift > 0 and not layer.drifted]
    if not names or identical:
        return []
    message = (
        f"the drift of layer {', '.join(names)} cannot be told from rounding: its interval is not above "
        f"{NUMERICAL_FACTOR:g} times the numerical resolution. It is reported as no drift"
    )
    return [ReportWarning(code="below_resolution", message=message)]


def _undefined(sites: list[SiteSimilarity]) -> list[ReportWarning]:
    layers = [str(index) for index, site in enumerate(sites) if site.cka is None]
    if not layers:
        return []
    message = (
        f"CKA of the token view is undefined at layer {', '.join(layers)} ({sites[int(layers[0])].undefined}); zones "
        "use relative L2 there"
    )
    return [ReportWarning(code="undefined_cka", message=message)]


def _cross_layer(extracted: Extracted) -> CrossLayerCka:
    base, tuned = extracted.token_sample
    values = cross_site_cka(base, tuned).tolist()
    return CrossLayerCka(
        values=[[None if math.isnan(value) else value for value in row] for row in values], rows=base.shape[1]
    )


def recommended(zones: list[Zone], sites: list[SiteSimilarity], drift: list[float], identical: bool) -> Recommendation:
    """What to freeze next time, predicted from the drift curve: the blocks at the bottom that hardly moved."""

    def predicted(freeze_first: int, evidence: str) -> Recommendation:
        return Recommendation(freeze_first=freeze_first, basis="predicted", evidence=evidence)

    if identical:
        return predicted(0, "The bodies of the models are identical: there is nothing to review below their heads.")
    if {zone.name for zone in zones} == {"general"}:
        return predicted(
            0, f"Drift stays at {max(drift):.3f} or below at every layer, so the curve does not separate the blocks."
        )
    unmoved = [
        value <= GENERAL_CEILING and (site.relative_l2_centred or 0.0) <= MUCH_MOVED
        for value, site in zip(drift, sites, strict=True)
    ]
    kept = max(0, len(list(takewhile(bool, unmoved))) - 1)
    if kept == 0:
        return predicted(0, "Every block at the bottom drifted or moved, so no freezing is predicted to be safe.")
    moved = max(site.relative_l2 or 0.0 for site in sites[: kept + 1])
    evidence = (
        f"Layers 0 to {kept} hardly moved (drift 1 - CKA at most {max(drift[: kept + 1]):.3f}, "
        f"relative L2 at most {moved:.3f}), so freezing the embeddings and the first {kept} of {len(drift) - 1} blocks "
        "is predicted to change little. This follows from the drift curve alone; no retraining has confirmed it."
    )
    return predicted(kept, evidence)
