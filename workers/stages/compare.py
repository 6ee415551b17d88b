"""Stage `compare`: gathered moments become similarities, drift, zones and advice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from layerdrift.contract.report import (
    CrossLayerCka,
    Measured,
    MeasureName,
    Recommendation,
    ReportWarning,
    Similarity,
    ViewName,
    Zone,
)
from workers.analysis.jackknife import jackknife_interval
from workers.analysis.similarity import MIN_ROWS, SiteSimilarity, cross_site_cka, similarities
from workers.analysis.zones import GENERAL_CEILING, fit_zones
from workers.analysis.zones import Zone as FittedZone
from workers.stages.extract import Extracted
from workers.stages.tick import Tick

MIN_GROUPS = 5
"""With fewer groups of texts an interval would be wider than it is worth."""


@dataclass(frozen=True)
class Compared:
    """What is known of each layer without autoencoders; lists run over layers 0 to L."""

    similarity: list[dict[ViewName, Similarity]]
    drift: list[float]
    zones: list[Zone]
    cross_layer_cka: CrossLayerCka
    recommendation: Recommendation
    warnings: list[ReportWarning]


def compare(extracted: Extracted, tick: Tick) -> Compared:
    """Reads every measure off the moments."""
    by_view = {view: similarities(moments) for view, moments in extracted.moments.items()}
    left_out = {view: _left_out(extracted, view, tick) for view in by_view}
    layers = len(by_view["token"])
    drift = _drifts(by_view["token"])
    zones = _supported(fit_zones(drift), [fit_zones(_drifts(sites)) for sites in left_out["token"]])
    identical = all(site.relative_l2 == 0 for site in by_view["token"])
    warnings = _undefined(by_view["token"])
    if identical:
        warnings.append(_identical(extracted))
    return Compared(
        similarity=[
            {view: _measured(sites[layer], [one[layer] for one in left_out[view]]) for view, sites in by_view.items()}
            for layer in range(layers)
        ],
        drift=drift,
        zones=zones,
        cross_layer_cka=_cross_layer(extracted),
        recommendation=recommended(zones, by_view["token"], drift, identical),
        warnings=warnings,
    )


def _left_out(extracted: Extracted, view: ViewName, tick: Tick) -> list[list[SiteSimilarity]]:
    """The similarities with each group of texts left out; none where groups were not kept, or are too few or small."""
    total, store = extracted.moments[view], extracted.groups.get(view)
    if store is None or store.groups < MIN_GROUPS:
        return []
    found = []
    for number, group in enumerate(store.each(total.centre), start=1):
        if total.n - group.n < MIN_ROWS:
            return []
        found.append(similarities(total.without(group)))
        tick(number / store.groups, f"intervals of the {view} view")
    return found


def _drifts(sites: list[SiteSimilarity]) -> list[float]:
    return [_drift(site) for site in sites]


def _supported(zones: list[FittedZone], fits: list[list[FittedZone]]) -> list[Zone]:
    """The zones, each with the share of jackknife fits that have one of the same layers."""

    def support(zone: FittedZone) -> float | None:
        if not fits:
            return None
        return sum((zone.first, zone.last) in {(one.first, one.last) for one in fit} for fit in fits) / len(fits)

    return [
        Zone(name=zone.name, first=zone.first, last=zone.last, level=zone.level, support=support(zone))
        for zone in zones
    ]


def _drift(site: SiteSimilarity) -> float:
    """1 - CKA; where CKA has no meaning, relative L2 tells whether anything moved at all."""
    if site.cka is not None:
        return 1.0 - site.cka
    if site.relative_l2 is None:
        raise ValueError("a layer without any measure has no drift")
    return min(1.0, site.relative_l2)


def _identical(extracted: Extracted) -> ReportWarning:
    """Says what is the same: the files, or only what lies below the heads."""
    if extracted.models["base"].fingerprint == extracted.models["tuned"].fingerprint:
        return ReportWarning(code="identical_models", message="both checkpoints are the same files: nothing was tuned")
    message = (
        "both models give exactly the same activations at every layer: what differs between the checkpoints, if "
        "anything, lies in their heads, which are not compared"
    )
    return ReportWarning(code="identical_bodies", message=message)


def _undefined(sites: list[SiteSimilarity]) -> list[ReportWarning]:
    layers = [str(index) for index, site in enumerate(sites) if site.cka is None]
    if not layers:
        return []
    message = (
        f"CKA of the token view has no meaning at layer {', '.join(layers)} ({sites[int(layers[0])].undefined}); "
        "zones use relative L2 there"
    )
    return [ReportWarning(code="undefined_cka", message=message)]


def _measured(site: SiteSimilarity, left_out: list[SiteSimilarity]) -> Similarity:
    def number(measure: MeasureName) -> Measured:
        value = getattr(site, measure)
        if value is None:
            return Measured(value=None, undefined=site.undefined)
        others = [other for one in left_out if (other := getattr(one, measure)) is not None]
        if not others or len(others) < len(left_out):
            return Measured(value=value)
        low, high = jackknife_interval(value, others)
        return Measured(value=value, low=low, high=high)

    return Similarity(**{measure: number(measure) for measure in get_args(MeasureName)})


def _cross_layer(extracted: Extracted) -> CrossLayerCka:
    base, tuned = extracted.sample
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
    kept = 0
    while zones[0].name == "general" and kept < zones[0].last and drift[kept + 1] <= GENERAL_CEILING:
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
