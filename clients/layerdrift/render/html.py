"""Report -> one self-contained HTML page: scripts, data and figures inside, nothing fetched."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from layerdrift import policies
from layerdrift.contract.report import Layer, Report
from layerdrift.render import charts, learned, sae_charts, sentences
from layerdrift.render.escaping import lines


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
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            sentences=sentences,
            taught=learned,
            verdict=policies.starter_verdict(report),
            picked=picked,
            zone_colours=charts.ZONE_COLOURS,
            data=_script_safe(data),
            bundle=Markup(_bundle()),  # noqa: S704 - Vega's own code, from a pinned package
            script=Markup(_script()),  # noqa: S704 - ours
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


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("layerdrift.render"),
        autoescape=select_autoescape(default=True),
        finalize=lambda value: lines(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    bundle: str = vl_convert.javascript_bundle(snippet="window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


@cache
def _script() -> str:
    """What makes the page answer to its reader."""
    return resources.files("layerdrift.render").joinpath("templates/report.js").read_text(encoding="utf-8")


def _script_safe(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704
