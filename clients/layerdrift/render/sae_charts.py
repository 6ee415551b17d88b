"""Charts of the sparse autoencoders."""

from __future__ import annotations

import altair as alt

from layerdrift.contract.report import Report
from layerdrift.render.charts import Spec, from_zero, layer_axis, spec_of

MODEL_COLOURS = {"base SAE on base": "#0072B2", "tuned SAE on tuned": "#D55E00", "base SAE on tuned": "#000000"}
TRAINED_ON = {"the tuned model's tokens": "#D55E00", "the base model's again (floor)": "#999999"}


def quality(report: Report) -> Spec | None:
    """FVU of the autoencoders by layer, on their own model and transferred; None where there are none."""
    rows = []
    for layer in report.layers:
        if layer.sae is None:
            return None
        for name, value in zip(
            MODEL_COLOURS, (layer.sae.base.fvu, layer.sae.tuned.fvu, layer.sae.transfer_fvu), strict=True
        ):
            rows.append({"layer": layer.index, "autoencoder": name, "fvu": value})
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=60, filled=True))
        .encode(
            x=layer_axis(report),
            y=alt.Y("fvu:Q", title="fraction of variance unexplained", scale=from_zero([row["fvu"] for row in rows])),
            color=alt.Color(
                "autoencoder:N",
                title="autoencoder",
                scale=alt.Scale(domain=list(MODEL_COLOURS), range=list(MODEL_COLOURS.values())),
            ),
            strokeDash=alt.StrokeDash(
                "autoencoder:N", scale=alt.Scale(domain=list(MODEL_COLOURS), range=[[1, 0], [1, 0], [6, 4]])
            ),
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
