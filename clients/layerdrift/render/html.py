"""Report -> one self-contained HTML page: scripts, data and figures inside, nothing fetched."""

from __future__ import annotations

from typing import Any

from layerdrift import policies
from layerdrift.contract.report import Layer, Report
from layerdrift.render import charts, learned, sae_charts, sentences
from layerdrift.render.page import bundle, environment, script, script_safe


def render(report: Report) -> str:
    """The page; equal reports give equal pages."""
    specs: dict[str, charts.Spec | None] = {
        "drift": charts.drift_curve(report),
        "measures": charts.measures(report),
        "trajectory": charts.trajectory(report),
        "consistency": charts.consistency(report),
        "grafts": charts.grafts(report),
        "sweep": charts.sweep(report),
        "probes": charts.probes(report),
        "training": charts.training(report),
        "cka": charts.cka_map(report),
        "weights": charts.weight_drift(report),
        "sae": sae_charts.quality(report),
        "density": sae_charts.density(report),
        "turnover": sae_charts.turnover(report),
        "sae-training": sae_charts.training(report),
    }
    shown = {name: spec for name, spec in specs.items() if spec is not None}
    picked = max(report.layers, key=lambda layer: layer.drift).index
    data = {"specs": shown, "picked": picked, "layers": _layers(report), "texts": _texts(report)}
    page: str = (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            sentences=sentences,
            taught=learned,
            verdict=policies.starter_verdict(report),
            picked=picked,
            zone_colours=charts.ZONE_COLOURS,
            data=script_safe(data),
            bundle=bundle(),
            script=script("report.js"),
        )
    )
    return page


def _layers(report: Report) -> list[dict[str, Any]]:
    """What the panel of the picked layer says."""
    return [
        {
            "name": layer.name,
            "zone": layer.zone,
            "drift": layer.drift,
            "resolution": sentences.resolution(layer),
            "of_scale": sentences.percent(layer.relative_drift.value),
            "interval": sentences.interval(layer.similarity["token"].cka, 4),
            "relative_l2": layer.similarity["token"].relative_l2.value,
            "graft": layer.graft.prefix.value if layer.graft else None,
            "probe": layer.probe.tuned.value if layer.probe else None,
            "fvu": layer.sae.base.fvu if layer.sae else None,
            "transfer": layer.sae.transfer_excess if layer.sae else None,
            "latents": _latents(layer),
        }
        for layer in report.layers
    ]


def _latents(layer: Layer) -> str | None:
    """New, lost and shifted latents beyond the floor; None where they are not told."""
    warm = layer.sae.warm_start if layer.sae else None
    if warm is None or warm.new_excess is None:
        return None
    counts = (
        (warm.new_excess, warm.new_error, "new"),
        (warm.lost_excess, warm.lost_error, "lost"),
        (warm.shifted_excess, warm.shifted_error, "shifted"),
    )
    return ", ".join(f"{sentences.excess(count, error)} {fate}" for count, error, fate in counts)


def _texts(report: Report) -> list[dict[str, Any]]:
    """The shown texts, with as many digits as a colour needs."""
    return [
        {
            "tokens": [_readable(token) for token in text.tokens],
            "special": text.special,
            "roles": text.roles,
            "drift": [[round(value, 3) for value in layer] for layer in text.drift],
            "latents": text.latents.model_dump() if text.latents else None,
        }
        for text in report.tokens.texts
    ]


_MARKS = str.maketrans({"Ġ": "\u2423", "▁": "\u2423", "Ċ": "⏎", "ĉ": "⇥"})
"""How tokenizers write spaces, line breaks and tabs, and how people do."""


def _readable(token: str) -> str:
    """A token of a vocabulary, its white space visible."""
    return token.translate(_MARKS)
