"""Charts of the sparse autoencoders."""

from __future__ import annotations

from statistics import median

import altair as alt

from layerdrift.contract.names import DENSITY_EDGES
from layerdrift.contract.report import Report
from layerdrift.render import sentences
from layerdrift.render.charts import Spec, from_zero, layer_axis, spec_of

MODEL_COLOURS = {
    "base SAE on base": "#0072B2",
    "tuned SAE on tuned": "#D55E00",
    "base SAE on tuned": "#000000",
    "SAE on random weights": "#999999",
}
DASHES = [[1, 0], [1, 0], [6, 4], [2, 3]]
TRAINED_ON = {"the tuned model's tokens": "#D55E00", "the base model's again (floor)": "#999999"}


def quality(report: Report) -> Spec | None:
    """FVU of the autoencoders by layer, on their own model and transferred; None where there are none."""
    rows = []
    for layer in report.layers:
        if layer.sae is None:
            return None
        random = layer.sae.random_weights
        values = [layer.sae.base.fvu, layer.sae.tuned.fvu, layer.sae.transfer_fvu, *([random.fvu] if random else [])]
        for name, value in zip(MODEL_COLOURS, values, strict=False):
            rows.append({"layer": layer.index, "autoencoder": name, "fvu": value})
    shown = [name for name in MODEL_COLOURS if any(row["autoencoder"] == name for row in rows)]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=60, filled=True))
        .encode(
            x=layer_axis(report),
            y=alt.Y("fvu:Q", title="fraction of variance unexplained", scale=from_zero([row["fvu"] for row in rows])),
            color=alt.Color(
                "autoencoder:N",
                title="autoencoder",
                scale=alt.Scale(domain=shown, range=[MODEL_COLOURS[name] for name in shown]),
            ),
            strokeDash=alt.StrokeDash("autoencoder:N", scale=alt.Scale(domain=shown, range=DASHES[: len(shown)])),
            tooltip=["layer:Q", "autoencoder:N", alt.Tooltip("fvu:Q", format=".4f")],
        )
        .properties(width=620, height=260)
    )
    return spec_of(chart)


def turnover(report: Report) -> Spec | None:
    """Latents that shifted, were lost or are new after a warm start, beside the floor; None where there was none."""
    rows = []
    for layer in report.layers:
        if layer.sae is None or layer.sae.warm_start is None:
            return None
        found = layer.sae.warm_start
        for name, counts in zip(TRAINED_ON, (found.tuned, found.floor), strict=True):
            for fate in ("shifted", "lost", "new"):
                rows.append({"layer": layer.index, "trained on": name, "fate": fate, "latents": getattr(counts, fate)})
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("layer:O", title="layer (0: embeddings)", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("trained on:N", sort=list(TRAINED_ON)),
            y=alt.Y("latents:Q", title="latents"),
            color=alt.Color(
                "trained on:N",
                title="trained further on",
                scale=alt.Scale(domain=list(TRAINED_ON), range=list(TRAINED_ON.values())),
                legend=alt.Legend(orient="bottom", labelLimit=300),
            ),
            tooltip=["layer:O", "trained on:N", "fate:N", "latents:Q"],
        )
        .properties(width=190, height=200)
        .facet(alt.Column("fate:N", title=None, sort=["shifted", "lost", "new"]))
    )
    return spec_of(chart)


def density(report: Report) -> Spec | None:
    """How many latents of each layer fire how often, in both models; None where that was not counted."""
    bins = ["none", *(f"{low:.3g} to {high:.3g} %" for low, high in _spans())]
    rows = []
    for layer in report.layers:
        if layer.sae is None or not layer.sae.base.density:
            return None
        for model, found in (("base", layer.sae.base), ("tuned", layer.sae.tuned)):
            whole = sum(found.density)
            for name, count in zip(bins, found.density, strict=True):
                rows.append({"layer": layer.index, "model": model, "fires on": name, "share": count / whole})
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer (0: embeddings)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("fires on:N", title="share of the tokens", sort=bins[::-1], axis=alt.Axis(labelLimit=200)),
            color=alt.Color(
                "share:Q", title="latents", scale=alt.Scale(scheme="viridis"), legend=alt.Legend(format=".0%")
            ),
            tooltip=["layer:O", "model:N", "fires on:N", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=230, height=200)
        .facet(alt.Column("model:N", title=None))
    )
    return spec_of(chart)


def training(report: Report) -> Spec | None:
    """Unexplained variance over the steps of every run, median and range over its autoencoders; None without runs."""
    rows = [
        {
            "run": sentences.RUNS[run.name],
            "step": point.step,
            "median": median(point.unexplained),
            "least": min(point.unexplained),
            "most": max(point.unexplained),
        }
        for run in report.sae_runs
        for point in run.curve
    ]
    if not rows:
        return None
    axis = alt.Y("least:Q", title="unexplained variance", scale=alt.Scale(domainMin=0))
    base = alt.Chart().encode(x=alt.X("step:Q", title="step"))
    band = base.mark_area(opacity=0.25, color="#0072B2").encode(y=axis, y2="most:Q")
    line = base.mark_line(color="#0072B2").encode(
        y=alt.Y("median:Q"),
        tooltip=["run:N", "step:Q", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("median", "least", "most"))],
    )
    shown = [sentences.RUNS[run.name] for run in report.sae_runs]
    chart = (
        alt.layer(band, line, data=alt.Data(values=rows))
        .properties(width=max(120, 560 // len(shown)), height=180)
        .facet(column=alt.Column("run:N", title=None, sort=shown))
        .resolve_scale(x="independent")
    )
    return spec_of(chart)


def _spans() -> list[tuple[float, float]]:
    """The bins between the edges, and the one above them, in percent."""
    edges = [100 * edge for edge in DENSITY_EDGES]
    return list(zip(edges, [*edges[1:], 100.0], strict=True))
