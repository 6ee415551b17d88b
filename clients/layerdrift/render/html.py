"""Report -> one self-contained HTML page: scripts, data and figures inside, nothing fetched."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from layerdrift.contract.report import Report
from layerdrift.render import charts, sae_charts, words


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
    token_specs = {f"tokens-{index}": charts.token_map(text) for index, text in enumerate(report.tokens.texts)}
    shown = {name: spec for name, spec in {**specs, **token_specs}.items() if spec is not None}
    page: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            words=words,
            zone_colours=charts.ZONE_COLOURS,
            specs=_script_safe(shown),
            bundle=Markup(_bundle()),  # noqa: S704 - Vega's own code, from a pinned package
        )
    )
    return page


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("layerdrift.render"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    bundle: str = vl_convert.javascript_bundle(snippet="window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _script_safe(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704
