"""Stage `compare`: gathered moments become similarities, drift, zones and advice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from layerdrift.contract.report import (
    CrossLayerCka,
    Measured,
    Recommendation,
    ReportWarning,
    Similarity,
    ViewName,
    Zone,
)
from workers.analysis.similarity import SiteSimilarity, cross_site_cka, similarities
from workers.analysis.zones import fit_zones
from workers.stages.extract import Extracted


@dataclass(frozen=True)
class Compared:
    """What is known of each layer without autoencoders; lists run over layers 0 to L."""

    similarity: list[dict[ViewName, Similarity]]
    drift: list[float]
    zones: list[Zone]
    cross_layer_cka: CrossLayerCka
    recommendation: Recommendation
    warnings: list[ReportWarning]


def compare(extracted: Extracted) -> Compared:
    """Reads every measure off the moments."""
    by_view = {view: similarities(moments) for view, moments in extracted.moments.items()}
    layers = len(by_view["token"])
    drift = [_drift(by_view["token"][layer]) for layer in range(layers)]
    zones = [Zone(name=zone.name, first=zone.first, last=zone.last, level=zone.level) for zone in fit_zones(drift)]
    identical = all(site.relative_l2 == 0 for site in by_view["token"])
    warnings = _undefined(by_view["token"])
    if identical:
        message = "both models give the same activations everywhere: nothing was tuned"
        warnings.append(ReportWarning(code="identical_models", message=message))
    return Compared(
        similarity=[{view: _measured(sites[layer]) for view, sites in by_view.items()} for layer in range(layers)],
        drift=drift,
        zones=zones,
        cross_layer_cka=_cross_layer(extracted),
        recommendation=recommended(zones, layers - 1, identical),
        warnings=warnings,
    )


def _drift(site: SiteSimilarity) -> float:
    """1 - CKA; where CKA has no meaning, relative L2 tells whether anything moved at all."""
    if site.cka is not None:
        return 1.0 - site.cka
    return 0.0 if site.relative_l2 == 0 else min(1.0, site.relative_l2 or 0.0)


def _undefined(sites: list[SiteSimilarity]) -> list[ReportWarning]:
    layers = [str(index) for index, site in enumerate(sites) if site.cka is None]
    if not layers:
        return []
    message = (
        f"CKA of the token view has no meaning at layer {', '.join(layers)} ({sites[int(layers[0])].undefined}); "
        "zones use relative L2 there"
    )
    return [ReportWarning(code="undefined_cka", message=message)]


def _measured(site: SiteSimilarity) -> Similarity:
    def number(value: float | None) -> Measured:
        return Measured(value=value, undefined=site.undefined if value is None else None)

    return Similarity(
        cosine=number(site.cosine),
        cosine_centred=number(site.cosine_centred),
        relative_l2=number(site.relative_l2),
        cka=number(site.cka),
    )


def _cross_layer(extracted: Extracted) -> CrossLayerCka:
    base, tuned = extracted.sample
    values = cross_site_cka(base, tuned).tolist()
    return CrossLayerCka(
        values=[[None if math.isnan(value) else value for value in row] for row in values], rows=base.shape[1]
    )


def recommended(zones: list[Zone], blocks: int, identical: bool) -> Recommendation:
    """What to freeze next time, predicted from the drift curve: the blocks of a general zone at the bottom."""
    if identical:
        return Recommendation(
            freeze_first=0, basis="predicted", evidence="The models are identical: there is nothing to review."
        )
    bottom = zones[0]
    if bottom.name != "general" or bottom.last == 0:
        evidence = "No block at the bottom kept its representations, so nothing is predicted to be safe to freeze."
        return Recommendation(freeze_first=0, basis="predicted", evidence=evidence)
    evidence = (
        f"Layers 0 to {bottom.last} kept their representations (mean drift 1 - CKA = {bottom.level:.3f}), so freezing "
        f"the embeddings and the first {bottom.last} of {blocks} blocks is predicted to change little. "
        "This follows from the drift curve alone; no retraining has confirmed it."
    )
    return Recommendation(freeze_first=bottom.last, basis="predicted", evidence=evidence)
