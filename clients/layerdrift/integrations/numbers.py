"""The numbers of a report that trackers and registries draw: one value for each layer and name."""

from __future__ import annotations

from layerdrift.contract.report import Layer, Report


def of_layers(report: Report) -> list[dict[str, float]]:
    """By layer, what was measured there; names are those of the report. What was not measured is left out."""
    return [{name: float(value) for name, value in _of(layer).items() if value is not None} for layer in report.layers]


def _of(layer: Layer) -> dict[str, float | None]:
    sae, token = layer.sae, layer.similarity["token"]
    return {
        "drift": layer.drift,
        "excess_drift": layer.excess_drift,
        "relative_drift": layer.relative_drift.value,
        "relative_l2": token.relative_l2.value,
        "cosine_centred": token.cosine_centred.value,
        "graft": layer.graft.prefix.value if layer.graft else None,
        "probe": layer.probe.tuned.value if layer.probe else None,
        "sae_transfer_excess": sae.transfer_excess if sae else None,
        "sae_new_latents": sae.warm_start.new_excess if sae and sae.warm_start else None,
        "sae_lost_latents": sae.warm_start.lost_excess if sae and sae.warm_start else None,
    }
