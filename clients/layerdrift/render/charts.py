"""The figures of a report as Vega-Lite, declared with Altair: one declaration serves the page and the PNG."""

from __future__ import annotations

from typing import Any

import altair as alt

from layerdrift.contract.report import Layer, Report, TokenText

ZONE_COLOURS = {"general": "#0072B2", "transitional": "#E69F00", "specialised": "#D55E00"}  # Okabe & Ito 2008
MODEL_COLOURS = {"base SAE on base": "#0072B2", "tuned SAE on tuned": "#D55E00", "base SAE on tuned": "#000000"}
PART_COLOURS = {"embeddings": "#000000", "attention": "#0072B2", "mlp": "#D55E00", "norm": "#009E73"}
VIEW_TITLES = {"token": "every token", "cls": "first or last token", "mean": "mean over a text"}
MEASURE_TITLES = {
    "cka": "debiased CKA",
    "cosine_centred": "centred cosine",
    "cosine": "raw cosine",
    "relative_l2": "relative L2",
}
MAX_DRIFT_COLOUR = 1.0

Spec = dict[str, Any]


def drift_curve(report: Report) -> Spec:
    """1 - CKA of the token view by layer, coloured by zone, with its 95 % intervals as a band."""
    rows = [
        {"layer": layer.index, "name": layer.name, "zone": layer.zone, "drift": layer.drift, **_drift_interval(layer)}
        for layer in report.layers
    ]
    colours = alt.Scale(domain=list(ZONE_COLOURS), range=list(ZONE_COLOURS.values()))
    shapes = alt.Scale(domain=list(ZONE_COLOURS), range=["circle", "square", "triangle-up"])
    scale = _from_zero([layer.drift for layer in report.layers])
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_layer_axis(report),
        y=alt.Y("drift:Q", title="drift, 1 − CKA (0: the same)", scale=scale),
    )
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        color=alt.Color("zone:N", title="zone", scale=colours),
        shape=alt.Shape("zone:N", title="zone", scale=shapes),
        tooltip=["name:N", "zone:N", alt.Tooltip("drift:Q", format=".4f"), *_interval_tips()],
    )
    band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.25, color="#888888")
    band = band.encode(y=alt.Y("low:Q", title="drift, 1 − CKA (0: the same)", scale=scale), y2="high:Q")
    return _spec((band + base.mark_line(color="#888888") + points).properties(width=620, height=280))


def _drift_interval(layer: Layer) -> dict[str, float | None]:
    cka = layer.similarity["token"].cka
    if cka.low is None or cka.high is None:
        return {"low": None, "high": None}
    return {"low": 1 - cka.high, "high": 1 - cka.low}


def measures(report: Report) -> Spec:
    """Every measure by layer and view, side by side."""
    rows = [
        {"layer": layer.index, "view": VIEW_TITLES[view], "measure": MEASURE_TITLES[name], "value": number["value"]}
        for layer in report.layers
        for view, similarity in layer.similarity.items()
        for name, number in similarity.model_dump().items()
        if number["value"] is not None
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=_layer_axis(report),
            y=alt.Y("value:Q", title=None),
            color=alt.Color(
                "view:N",
                title="view",
                scale=alt.Scale(domain=list(VIEW_TITLES.values()), range=["#0072B2", "#009E73", "#CC79A7"]),
            ),
            strokeDash=alt.StrokeDash("view:N", scale=alt.Scale(domain=list(VIEW_TITLES.values()))),
            tooltip=["layer:Q", "view:N", alt.Tooltip("value:Q", format=".4f")],
        )
        .properties(width=280, height=170)
        .facet(facet=alt.Facet("measure:N", title=None, sort=list(MEASURE_TITLES.values())), columns=2)
        .resolve_scale(y="independent")
    )
    return _spec(chart)


def cka_map(report: Report) -> Spec:
    """Debiased CKA between every layer of both models."""
    values = report.cross_layer_cka.values
    rows = [
        {"base": i, "tuned": j, "cka": value, "text": f"{value:.2f}"}
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if value is not None
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("tuned:O", title="layer of the tuned model", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("base:O", title="layer of the base model", sort="descending"),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("cka:Q", title="CKA", scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)),
        tooltip=["base:O", "tuned:O", alt.Tooltip("cka:Q", format=".4f")],
    )
    side = max(300, 34 * len(values))
    chart = cells
    if len(values) <= 16:
        chart = cells + base.mark_text(fontSize=11).encode(
            text="text:N",
            color=alt.condition("datum.cka > 0.6", alt.value("black"), alt.value("white")),
        )
    return _spec(chart.properties(width=side, height=side))


def weight_drift(report: Report) -> Spec | None:
    """Relative Frobenius norm of the weight differences by layer and part; None where no weights were compared."""
    rows = [
        {"layer": layer.index, "part": part, "relative": found.relative_frobenius, "rank": found.effective_rank}
        for layer in report.layers
        for part, found in layer.weights.items()
    ]
    if not rows:
        return None
    colours = alt.Scale(domain=list(PART_COLOURS), range=list(PART_COLOURS.values()))
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=60, filled=True))
        .encode(
            x=_layer_axis(report),
            y=alt.Y("relative:Q", title="relative Frobenius norm of the difference", scale=alt.Scale(domainMin=0)),
            color=alt.Color("part:N", title="part", scale=colours),
            strokeDash=alt.StrokeDash("part:N", title="part", scale=alt.Scale(domain=list(PART_COLOURS))),
            tooltip=["layer:Q", "part:N", alt.Tooltip("relative:Q", format=".5f"), alt.Tooltip("rank:Q", format=".1f")],
        )
        .properties(width=620, height=220)
    )
    return _spec(chart)


def sae_quality(report: Report) -> Spec | None:
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
            x=_layer_axis(report),
            y=alt.Y("fvu:Q", title="fraction of variance unexplained", scale=_from_zero([row["fvu"] for row in rows])),
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
    return _spec(chart)


def token_map(text: TokenText) -> Spec:
    """The drift of every token of one text at every layer."""
    rows = [
        {"place": place, "token": token, "layer": layer, "drift": values[place], "special": text.special[place]}
        for layer, values in enumerate(text.drift)
        for place, token in enumerate(text.tokens)
    ]
    labels = [f"datum.value == {place} ? {_quoted(token)}" for place, token in enumerate(text.tokens)]
    axis = alt.Axis(
        labelExpr=" : ".join([*labels, "''"]), labelAngle=-60, labelLimit=90, labelOverlap=False, ticks=False
    )
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("place:O", title=None, axis=axis),
            y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(ticks=False)),
            color=alt.Color(
                "drift:Q",
                title="1 − cosine",
                scale=alt.Scale(scheme="viridis", domain=[0, MAX_DRIFT_COLOUR], clamp=True),
            ),
            tooltip=["token:N", "layer:O", alt.Tooltip("drift:Q", format=".3f"), "special:N"],
        )
        .properties(width=alt.Step(24), height=alt.Step(17))
    )
    return _spec(chart)


def _interval_tips() -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{end}:Q", format=".4f", title=f"95 % {end}") for end in ("low", "high")]


def _quoted(token: str) -> str:
    """A token as a string of Vega's expression language."""
    escaped = token.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ")
    return f"'{escaped}'"


def _layer_axis(report: Report) -> alt.X:
    last = report.layers[-1].index
    ticks = list(range(0, last + 1, 1 + last // 24))
    return alt.X(
        "layer:Q",
        title="layer (0: embeddings)",
        axis=alt.Axis(values=ticks, format="d"),
        scale=alt.Scale(domain=[-0.2, last + 0.2], nice=False),
    )


def _from_zero(values: list[Any]) -> alt.Scale:
    """A scale that begins at 0 and shows at least 0 to 1, so that a small drift looks small."""
    return alt.Scale(domain=[min(0.0, *values), max(1.0, *values)])


def _spec(chart: Any) -> Spec:
    configured = chart.configure(font="system-ui, sans-serif").configure_view(stroke=None)
    configured = configured.configure_axis(labelFontSize=12, titleFontSize=12, gridColor="#e6e6e6")
    spec: Spec = configured.to_dict()
    return spec
