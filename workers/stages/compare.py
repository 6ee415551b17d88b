"""Stage `compare`: gathered moments become similarities, drift beyond chance, probes, zones and advice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from layerdrift.contract.report import (
    AllTokens,
    CrossLayerCka,
    Measured,
    MeasureName,
    Null,
    Recommendation,
    ReportWarning,
    Similarity,
    ViewName,
    Zone,
)
from layerdrift.contract.request import AnalysisRequest, NullName
from workers.analysis.geometry import NEIGHBOURS, Geometry, PairDistances
from workers.analysis.similarity import MIN_ROWS, SiteSimilarity, cross_site_cka, drift_of, similarities
from workers.analysis.zones import GENERAL_CEILING, fit_zones
from workers.analysis.zones import Zone as FittedZone
from workers.stages.disagreement import similarity_warnings
from workers.stages.extract import ALL_TOKENS_GAP, Extracted
from workers.stages.gather import group_count
from workers.stages.intervals import MIN_GROUPS, measured, ratio
from workers.stages.nulls import Consistency, MeasuredNull
from workers.stages.probes import Probed, probe
from workers.stages.resolve import Resolved
from workers.stages.tick import Tick

NUMERICAL_FACTOR = 4.0
"""Another rounding of a model may move it twice as far as the numerical null did: four times its 1 - CKA."""

MOMENT_MEASURES: tuple[MeasureName, ...] = (
    "cosine",
    "cosine_centred",
    "relative_l2",
    "cka",
    "cka_standardized",
    "procrustes",
)
GEOMETRY_MEASURES: tuple[MeasureName, ...] = ("rsa", "knn_jaccard")
SAME: dict[MeasureName, float] = {
    "cosine": 1,
    "cosine_centred": 1,
    "relative_l2": 0,
    "cka": 1,
    "cka_standardized": 1,
    "procrustes": 0,
    "rsa": 1,
    "knn_jaccard": 1,
}
"""The value of each measure where nothing changed."""


@dataclass(frozen=True)
class LayerDrift:
    """What the token view says of one layer's drift; see `docs/numbers.md`."""

    drift: float
    nulls: dict[NullName, float]
    excess: float
    drifted: bool


@dataclass(frozen=True)
class Compared:
    """What is known of each layer without autoencoders; lists run over layers 0 to L."""

    similarity: list[dict[ViewName, Similarity]]
    all_tokens: list[AllTokens] | None
    layers: list[LayerDrift]
    consistency: list[Measured] | None
    probed: Probed | None
    nulls: list[Null]
    zones: list[Zone]
    cross_layer_cka: CrossLayerCka
    recommendation: Recommendation
    warnings: list[ReportWarning]

    @property
    def drift(self) -> list[float]:
        """Of every layer."""
        return [layer.drift for layer in self.layers]


def compare(request: AnalysisRequest, resolved: Resolved, extracted: Extracted, tick: Tick) -> Compared:
    """Reads every measure off the moments and the sampled texts."""
    by_view = {view: similarities(moments) for view, moments in extracted.moments.items()}
    left_out = {view: _left_out(extracted, view, tick) for view in by_view}
    geometry = _geometry(extracted, tick)
    similarity = [
        {
            view: _similarity(
                sites[layer],
                [one[layer] for one in left_out[view]],
                geometry[layer] if view == "mean" else None,
                [_null_site(null, view, layer) for null in extracted.nulls.measured],
            )
            for view, sites in by_view.items()
        }
        for layer in range(len(by_view["token"]))
    ]
    token = by_view["token"]
    layers = [
        _layer_drift(site, similarity[layer]["token"].cka, extracted.nulls.measured, layer)
        for layer, site in enumerate(token)
    ]
    zones = _zones(layers, left_out["token"])
    identical = all(site.relative_l2 == 0 for site in token)
    probed = _probes(request, resolved, extracted, tick)
    all_tokens = _all_tokens(extracted)
    return Compared(
        similarity=similarity,
        all_tokens=all_tokens,
        layers=layers,
        consistency=_consistency(extracted.nulls.consistency),
        probed=probed,
        nulls=[measured.null for measured in extracted.nulls.measured],
        zones=zones,
        cross_layer_cka=_cross_layer(extracted),
        recommendation=recommended(zones, token, [layer.drift for layer in layers], identical),
        warnings=[
            *_undefined(token),
            *_left_out_tokens(extracted, all_tokens, [layer.drift for layer in layers]),
            *([_identical(extracted)] if identical else similarity_warnings(similarity)),
            *_within_chance(layers, identical),
        ],
    )


def _all_tokens(extracted: Extracted) -> list[AllTokens] | None:
    """The token view with the tokens that are left out elsewhere."""
    if extracted.all_tokens is None:
        return None
    sites = similarities(extracted.all_tokens)
    return [AllTokens(drift=drift_of(site), relative_l2=site.relative_l2) for site in sites]


def _left_out_tokens(
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
        f"{counts.left_out_share:.1%} of the tokens are not compared: {counts.first} first tokens of texts (of causal "
        f"models) and {counts.outliers} outliers, whose states are so long that they would hide all others. With them "
        f"drift would differ at layer {', '.join(layers)}, most at layer {most}: {all_tokens[most].drift:.3f} in place "
        f"of {drift[most]:.3f}"
    )
    return [ReportWarning(code="left_out_tokens", message=message)]


def _left_out(extracted: Extracted, view: ViewName, tick: Tick) -> list[list[SiteSimilarity]]:
    """The similarities with each group of texts left out; none where groups were not kept, or are too few or small."""
    total, store = extracted.moments[view], extracted.groups.get(view)
    if store is None or store.groups < MIN_GROUPS:
        return []
    found = []
    for number, group in enumerate(store.each(total.frame), start=1):
        if total.n - group.n < MIN_ROWS:
            return []
        found.append(similarities(total.without(group)))
        tick(0.2 * number / store.groups, f"intervals of the {view} view")
    return found


@dataclass(frozen=True)
class _SiteGeometry:
    """Distances between texts at one layer: of all, and with each group left out."""

    whole: Geometry
    left_out: list[Geometry]


def _geometry(extracted: Extracted, tick: Tick) -> list[_SiteGeometry]:
    sample = extracted.text_sample
    groups = torch.tensor(sample.texts) % group_count(extracted.analysed)
    present = groups.unique()
    found = []
    for layer, (base, tuned) in enumerate(zip(*sample.rows, strict=True)):
        distances = PairDistances(base, tuned)
        left_out = [distances.geometry(groups != group) for group in present] if len(present) >= MIN_GROUPS else []
        found.append(_SiteGeometry(distances.geometry(), left_out))
        tick(0.2 + 0.5 * (layer + 1) / len(sample.rows.base), f"distances between texts at layer {layer}")
    return found


def _null_site(null: MeasuredNull, view: ViewName, layer: int) -> dict[MeasureName, float | None]:
    site, geometry = null.similarity[view][layer], null.geometry[layer]
    of_moments: dict[MeasureName, float | None] = {name: getattr(site, name) for name in MOMENT_MEASURES}
    return of_moments | {name: getattr(geometry, name) for name in GEOMETRY_MEASURES}


def _similarity(
    site: SiteSimilarity,
    left_out: list[SiteSimilarity],
    geometry: _SiteGeometry | None,
    nulls: list[dict[MeasureName, float | None]],
) -> Similarity:
    def null(measure: MeasureName) -> float | None:
        known = [value for one in nulls if (value := one[measure]) is not None]
        return max(known, key=lambda value: abs(value - SAME[measure]), default=None)

    def number(measure: MeasureName) -> Measured:
        others = [getattr(one, measure) for one in left_out]
        return measured(getattr(site, measure), others, site.undefined, null(measure))

    found = {measure: number(measure) for measure in MOMENT_MEASURES}
    if geometry is not None:
        reason = f"fewer than {NEIGHBOURS + 2} texts, or all in one place"
        rsa, knn = ([getattr(one, measure) for one in geometry.left_out] for measure in GEOMETRY_MEASURES)
        found["rsa"] = measured(geometry.whole.rsa, rsa, reason, null("rsa"))
        # how many of ten nearest texts are shared depends on how many texts there are: no bias to take out
        found["knn_jaccard"] = measured(geometry.whole.knn_jaccard, knn, reason, null("knn_jaccard"), corrected=False)
    return Similarity(**found)


def _layer_drift(site: SiteSimilarity, cka: Measured, nulls: list[MeasuredNull], layer: int) -> LayerDrift:
    """Drift beyond chance: the lower end of its interval must be above every null."""
    drift = drift_of(site)
    by_null = {null.null.name: drift_of(null.similarity["token"][layer]) for null in nulls}
    floor = max((_floor(name, value) for name, value in by_null.items()), default=0.0)
    low = drift if cka.high is None else 1 - cka.high
    drifted = low > floor and drift > 0
    return LayerDrift(drift, by_null, max(0.0, drift - max(by_null.values(), default=0.0)) if drifted else 0.0, drifted)


def _floor(name: NullName, drift: float) -> float:
    return NUMERICAL_FACTOR * drift if name == "numerical" else drift


def _zones(layers: list[LayerDrift], left_out: list[list[SiteSimilarity]]) -> list[Zone]:
    """The zones of the excess drift, each with the share of jackknife fits that have one of the same layers."""

    def fitted(drift: list[float]) -> list[FittedZone]:
        excess = [
            max(0.0, value - max(layer.nulls.values(), default=0.0)) if layer.drifted else 0.0
            for value, layer in zip(drift, layers, strict=True)
        ]
        return fit_zones(excess, drift)

    zones = fitted([layer.drift for layer in layers])
    fits = [fitted([drift_of(site) for site in sites]) for sites in left_out]

    def support(zone: FittedZone) -> float | None:
        if not fits:
            return None
        return sum((zone.first, zone.last) in {(one.first, one.last) for one in fit} for fit in fits) / len(fits)

    return [
        Zone(name=zone.name, first=zone.first, last=zone.last, level=zone.level, support=support(zone))
        for zone in zones
    ]


def _consistency(found: Consistency | None) -> list[Measured] | None:
    if found is None:
        return None
    return [ratio(sums, found.counts, bounds=(-1.0, 1.0)) for sums in found.sums.T]


def _probes(request: AnalysisRequest, resolved: Resolved, extracted: Extracted, tick: Tick) -> Probed | None:
    if not request.analysis.probes:
        return None
    sample = extracted.text_sample
    labels = [resolved.split.analysed[text].label for text in sample.texts]
    groups = torch.tensor(sample.texts) % group_count(extracted.analysed)
    return probe(sample.rows, labels, groups, request.seed, lambda share: tick(0.7 + 0.3 * share, "probes"))


def _identical(extracted: Extracted) -> ReportWarning:
    """Says what is the same: the files, or only what lies below the heads."""
    if extracted.models["base"].fingerprint == extracted.models["tuned"].fingerprint:
        return ReportWarning(code="identical_models", message="both checkpoints are the same files: nothing was tuned")
    message = (
        "both models give exactly the same activations at every layer: what differs between the checkpoints, if "
        "anything, lies in their heads"
    )
    return ReportWarning(code="identical_bodies", message=message)


def _within_chance(layers: list[LayerDrift], identical: bool) -> list[ReportWarning]:
    """Layers that moved, but no farther than chance moves them."""
    names = [str(index) for index, layer in enumerate(layers) if layer.drift > 0 and not layer.drifted]
    if not names or identical:
        return []
    message = (
        f"the drift of layer {', '.join(names)} is not beyond what chance gives (see the nulls); it is reported as none"
    )
    return [ReportWarning(code="within_chance", message=message)]


def _undefined(sites: list[SiteSimilarity]) -> list[ReportWarning]:
    layers = [str(index) for index, site in enumerate(sites) if site.cka is None]
    if not layers:
        return []
    message = (
        f"CKA of the token view has no meaning at layer {', '.join(layers)} ({sites[int(layers[0])].undefined}); "
        "zones use relative L2 there"
    )
    return [ReportWarning(code="undefined_cka", message=message)]


def _cross_layer(extracted: Extracted) -> CrossLayerCka:
    base, tuned = extracted.token_sample
    values = cross_site_cka(base, tuned).tolist()
    return CrossLayerCka(
        values=[[None if math.isnan(value) else value for value in row] for row in values], rows=base.shape[1]
    )


def recommended(zones: list[Zone], sites: list[SiteSimilarity], drift: list[float], identical: bool) -> Recommendation:
    """What to freeze next time, predicted from the drift curve: the unmoved blocks of a general zone at the bottom."""

    def predicted(freeze_first: int, evidence: str) -> Recommendation:
        return Recommendation(freeze_first=freeze_first, basis="predicted", evidence=evidence)

    if identical:
        return predicted(0, "The bodies of the models are identical: there is nothing to review below their heads.")
    if {zone.name for zone in zones} == {"general"}:
        return predicted(
            0, f"Drift stays at {max(drift):.3f} or below at every layer, so the curve does not tell the blocks apart."
        )
    general = 0
    for zone in zones:
        if zone.name != "general":
            break
        general = zone.last
    kept = 0
    while kept < general and drift[kept + 1] <= GENERAL_CEILING:
        kept += 1
    if kept == 0:
        return predicted(0, "No block at the bottom kept its representations, so nothing is predicted to be safe.")
    moved = max(site.relative_l2 or 0.0 for site in sites[: kept + 1])
    evidence = (
        f"Layers 0 to {kept} kept their representations (drift 1 - CKA at most {max(drift[: kept + 1]):.3f}, "
        f"relative L2 at most {moved:.3f}), so freezing the embeddings and the first {kept} of {len(drift) - 1} blocks "
        "is predicted to change little. This follows from the drift curve alone; no retraining has confirmed it."
    )
    return predicted(kept, evidence)
