"""The figures of a report as Vega-Lite, declared with Altair: one declaration serves the page and the PNG."""

from __future__ import annotations

from typing import Any

import altair as alt

from layerdrift.contract.names import MeasureName, ViewName
from layerdrift.contract.report import Layer, Report
from layerdrift.contract.request import NoiseFloorName

ZONE_COLOURS = {
    "general": "#0072B2",
    "transitional": "#E69F00",
    "specialised": "#D55E00",
    "ramp": "#CC79A7",
}  # Okabe & Ito 2008
DASH = [5, 3]
DASHED = alt.Legend(symbolDash=DASH)
ZONE_SHAPES = {"general": "circle", "transitional": "square", "specialised": "triangle-up", "ramp": "diamond"}
PART_COLOURS = {"embeddings": "#8A7B6B", "attention": "#0072B2", "mlp": "#D55E00", "norm": "#009E73"}
VIEW_TITLES: dict[ViewName, str] = {
    "token": "every token",
    "cls": "first or last token",
    "mean": "mean over a text",
    "assistant": "assistant's tokens",
    "user": "user's tokens",
    "system": "system prompt's tokens",
    "tool": "tools' tokens",
    "template": "template's tokens",
}
VIEW_COLOURS = dict(
    zip(
        VIEW_TITLES.values(),
        ("#0072B2", "#009E73", "#CC79A7", "#D55E00", "#E69F00", "#56B4E9", "#8A7B6B", "#999999"),
        strict=True,
    )
)
MEASURE_TITLES: dict[MeasureName, str] = {
    "cka": "debiased CKA",
    "cka_standardized": "CKA, features standardised",
    "procrustes": "Procrustes distance",
    "relative_l2": "relative L2",
    "relative_l2_centred": "relative L2, centred",
    "cosine_centred": "centred cosine",
    "cosine": "raw cosine",
    "rsa": "RSA (mean view)",
    "knn_jaccard": "shared nearest texts (mean view)",
}
NOISE_FLOOR_TITLES: dict[NoiseFloorName, str] = {
    "numerical": "numerical resolution",
    "reseed": "two seeds against each other",
    "label_shuffle": "shuffled labels",
}
RANDOM_WEIGHTS, RANDOM_WEIGHTS_COLOUR = "random weights", "#009E73"
NOISE_FLOOR_COLOURS = ["#666666", "#CC79A7", "#56B4E9"]
GRAFT_TITLES = {"prefix": "base layers 0 to k", "block": "base block k alone"}
GRAFT_UNITS = {
    "accuracy": "accuracy",
    "perplexity": "perplexity",
    "kl": "KL from the tuned model, bits",
    "state_change": "relative change of the last layer",
}
PROBE_TITLES = {
    "base": "base model",
    "tuned": "tuned model",
    "base_control": "base, shuffled labels",
    "tuned_control": "tuned, shuffled labels",
}

SEEDS = "all seeds"

Spec = dict[str, Any]


def drift_curve(report: Report) -> Spec:
    """1 - CKA of the token view by layer, coloured by zone, with its 95 % intervals as a band."""
    rows = [
        {"layer": layer.index, "name": layer.name, "zone": layer.zone, "drift": layer.drift, **_drift_interval(layer)}
        for layer in report.layers
    ]
    zones = [zone for zone in ZONE_COLOURS if any(layer.zone == zone for layer in report.layers)]
    colours = alt.Scale(domain=zones, range=[ZONE_COLOURS[zone] for zone in zones])
    shapes = alt.Scale(domain=zones, range=[ZONE_SHAPES[zone] for zone in zones])
    scale = from_zero([layer.drift for layer in report.layers])
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=layer_axis(report),
        y=alt.Y("drift:Q", title="drift, 1 − CKA (0: the same)", scale=scale),
    )
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        color=alt.Color("zone:N", title="zone", scale=colours),
        shape=alt.Shape("zone:N", title="zone", scale=shapes),
        tooltip=["name:N", "zone:N", alt.Tooltip("drift:Q", format=".4f"), *_interval_tips()],
    )
    band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.25, color="#888888")
    band = band.encode(y=alt.Y("low:Q", title="drift, 1 − CKA (0: the same)", scale=scale), y2="high:Q")
    layers = [base.mark_line(color="#888888"), points]
    if _has_intervals(rows):
        layers.insert(0, band)
    if report.layers[0].noise_floors or any(layer.random_weights_drift is not None for layer in report.layers):
        layers.insert(0, _reference_curves(report, scale))
    return spec_of(alt.layer(*layers).properties(width=620, height=280))


def _reference_curves(report: Report, scale: alt.Scale) -> Any:
    rows = [
        {"layer": layer.index, "reference": NOISE_FLOOR_TITLES[name], "level": level}
        for layer in report.layers
        for name, level in layer.noise_floors.items()
    ]
    rows += [
        {"layer": layer.index, "reference": RANDOM_WEIGHTS, "level": layer.random_weights_drift}
        for layer in report.layers
        if layer.random_weights_drift is not None
    ]
    titles = [*NOISE_FLOOR_TITLES.values(), RANDOM_WEIGHTS]
    colour_of = dict(zip(titles, [*NOISE_FLOOR_COLOURS, RANDOM_WEIGHTS_COLOUR], strict=True))
    names = [title for title in titles if any(row["reference"] == title for row in rows)]
    colours = [colour_of[name] for name in names]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeDash=DASH)
        .encode(
            x=layer_axis(report),
            y=alt.Y("level:Q", title="drift, 1 − CKA (0: the same)", scale=scale),
            stroke=alt.Stroke(
                "reference:N", title="for comparison", scale=alt.Scale(domain=names, range=colours), legend=DASHED
            ),
            tooltip=["layer:Q", "reference:N", alt.Tooltip("level:Q", format=".5f")],
        )
    )


def _drift_interval(layer: Layer) -> dict[str, float | None]:
    cka = layer.similarity["token"].cka
    if cka.low is None or cka.high is None:
        return {"low": None, "high": None}
    return {"low": 1 - cka.high, "high": 1 - cka.low}


def measures(report: Report) -> Spec:
    """Every measure by layer and view, side by side, with intervals and the noise floor."""
    rows = [
        {
            "layer": layer.index,
            "view": VIEW_TITLES[view],
            "measure": MEASURE_TITLES[name],
            **number.model_dump(include={"value", "low", "high", "noise_floor"}),
        }
        for layer in report.layers
        for view, similarity in layer.similarity.items()
        for name in MEASURE_TITLES
        if (number := getattr(similarity, name)) is not None and number.value is not None
    ]
    titles = [title for title in VIEW_TITLES.values() if any(row["view"] == title for row in rows)]
    views = alt.Scale(domain=titles, range=[VIEW_COLOURS[title] for title in titles])
    picked = alt.selection_point(fields=["view"], bind="legend")
    base = alt.Chart().encode(
        x=layer_axis(report),
        color=alt.Color("view:N", title="view", scale=views),
        opacity=alt.condition(picked, alt.value(1.0), alt.value(0.1)),
    )
    band = (
        base.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.2)
        .encode(
            y=alt.Y("low:Q", title=None), y2="high:Q", opacity=alt.condition(picked, alt.value(0.2), alt.value(0.02))
        )
    )
    line = base.mark_line(point=True).encode(
        y=alt.Y("value:Q", title=None),
        strokeDash=alt.StrokeDash("view:N", scale=alt.Scale(domain=titles)),
        tooltip=[
            "layer:Q",
            "view:N",
            alt.Tooltip("value:Q", format=".4f"),
            *_interval_tips(),
            alt.Tooltip("noise_floor:Q", format=".4f"),
        ],
    )
    noise_floor = (
        base.transform_filter("isValid(datum.noise_floor)")
        .mark_tick(thickness=2, size=11, opacity=0.7, orient="horizontal")
        .encode(y="noise_floor:Q")
    )
    line = line.add_params(picked)
    layers = [band, line] if _has_intervals(rows) else [line]
    if any(row["noise_floor"] is not None for row in rows):
        layers.append(noise_floor)
    chart = (
        alt.layer(*layers, data=alt.Data(values=rows))
        .properties(width=280, height=150)
        .facet(facet=alt.Facet("measure:N", title=None, sort=list(MEASURE_TITLES.values())), columns=2)
        .resolve_scale(y="independent")
    )
    return spec_of(chart)


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
    return spec_of(chart.properties(width=side, height=side))


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
            x=layer_axis(report),
            y=alt.Y("relative:Q", title="relative Frobenius norm of the difference", scale=alt.Scale(domainMin=0)),
            color=alt.Color("part:N", title="part", scale=colours),
            strokeDash=alt.StrokeDash("part:N", title="part", scale=alt.Scale(domain=list(PART_COLOURS))),
            tooltip=["layer:Q", "part:N", alt.Tooltip("relative:Q", format=".5f"), alt.Tooltip("rank:Q", format=".1f")],
        )
        .properties(width=620, height=220)
    )
    return spec_of(chart)


def grafts(report: Report) -> Spec | None:
    """The tuned model's answers with parts of the base model in it, by layer; None where there are no grafts."""
    info = report.causal.graft
    if info is None:
        return None
    rows = [
        {"layer": layer.index, "kind": GRAFT_TITLES[kind], **number.model_dump(include={"value", "low", "high"})}
        for layer in report.layers
        if layer.graft is not None
        for kind, number in (("prefix", layer.graft.prefix), ("block", layer.graft.block))
    ]
    title = GRAFT_UNITS[info.measure]
    kinds = alt.Scale(domain=list(GRAFT_TITLES.values()), range=["#D55E00", "#0072B2"])
    chart = _banded_lines(report, rows, "kind", kinds, title, "what comes from the base")
    level = alt.Chart(alt.Data(values=[{"value": info.ungrafted}])).mark_rule(strokeDash=[5, 3], color="#444444")
    return spec_of(alt.layer(chart, level.encode(y="value:Q")).properties(width=620, height=240))


def probes(report: Report) -> Spec | None:
    """What a linear probe reads off every layer of both models, with its controls; None without labels."""
    if report.probes is None:
        return None
    rows: list[dict[str, Any]] = []
    for layer in report.layers:
        if layer.probe is None:
            return None
        for name, number in (("base", layer.probe.base), ("tuned", layer.probe.tuned)):
            measured = number.model_dump(include={"value", "low", "high"})
            rows.append({"layer": layer.index, "probe": PROBE_TITLES[name], **measured})
        for name, control in (("base_control", layer.probe.base_control), ("tuned_control", layer.probe.tuned_control)):
            rows.append(
                {"layer": layer.index, "probe": PROBE_TITLES[name], "value": control, "low": None, "high": None}
            )
    names = alt.Scale(domain=list(PROBE_TITLES.values()), range=["#0072B2", "#D55E00", "#89b8d8", "#e9a87c"])
    chart = _banded_lines(report, rows, "probe", names, "held-out accuracy", "probe of")
    majority = alt.Chart(alt.Data(values=[{"value": report.probes.majority_accuracy}]))
    level = majority.mark_rule(strokeDash=[5, 3], color="#444444").encode(y="value:Q")
    return spec_of(alt.layer(chart, level).properties(width=620, height=240))


def consistency(report: Report) -> Spec | None:
    """Whether fine-tunes with other seeds changed the tokens alike, by layer; None without them."""
    rows = [
        {"layer": layer.index, "of": SEEDS, **found.model_dump(include={"value", "low", "high"})}
        for layer in report.layers
        if (found := layer.reproducibility or layer.task_consistency) is not None
    ]
    if not rows:
        return None
    colour = alt.Scale(domain=[SEEDS], range=["#CC79A7"])
    chart = _banded_lines(report, rows, "of", colour, "share of the change that seeds make alike", "fine-tunes")
    return spec_of(chart.properties(width=620, height=200))


def sweep(report: Report) -> Spec | None:
    """Accuracy by how many blocks were frozen, every seed and the mean; None without a sweep."""
    found = report.causal.sweep
    if found is None:
        return None
    rows = [
        {"frozen": point.freeze_first, "seed": str(seed), "accuracy": accuracy}
        for point in found.points
        for seed, accuracy in zip(found.seeds, point.by_seed, strict=True)
    ]
    axis = alt.X(
        "frozen:Q",
        title="first blocks frozen (with the embeddings; 0: nothing)",
        axis=alt.Axis(values=[point.freeze_first for point in found.points], format="d"),
    )
    base = alt.Chart(alt.Data(values=rows)).encode(x=axis)
    y = alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(zero=False))
    seeds = base.mark_point(filled=True, size=55, opacity=0.8).encode(
        y=y,
        shape=alt.Shape("seed:N", title="seed"),
        tooltip=["frozen:Q", "seed:N", alt.Tooltip("accuracy:Q", format=".4f")],
    )
    means = base.mark_line(color="#444444").encode(y=alt.Y("mean(accuracy):Q", title="accuracy"))
    return spec_of((means + seeds).properties(width=620, height=220))


def trajectory(report: Report) -> Spec | None:
    """Drift of every layer along the fine-tune; None without snapshots."""
    found = report.trajectory
    if found is None:
        return None
    rows = [
        {"step": step, "layer": layer, "drift": value}
        for step, layers in zip([0, *found.steps], [[0.0] * len(found.drift[0]), *found.drift], strict=True)
        for layer, value in enumerate(layers)
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="optimiser step"),
            y=alt.Y("drift:Q", title="drift, 1 − CKA", scale=from_zero([row["drift"] for row in rows])),
            color=alt.Color("layer:O", title="layer", scale=alt.Scale(scheme="viridis")),
            tooltip=["step:Q", "layer:O", alt.Tooltip("drift:Q", format=".4f")],
        )
        .properties(width=620, height=260)
    )
    return spec_of(chart)


def training(report: Report) -> Spec | None:
    """Loss on the training and the held-out rows by step; None for a pair."""
    run = report.finetune
    if run is None:
        return None
    rows = [{"step": point.step, "loss": point.loss, "rows": "trained on"} for point in run.losses]
    rows += [{"step": point.step, "loss": point.loss, "rows": "held out"} for point in run.held_out]
    names = alt.Scale(domain=["trained on", "held out"], range=["#888888", "#D55E00"])
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(size=30, filled=True))
        .encode(
            x=alt.X("step:Q", title="optimiser step"),
            y=alt.Y("loss:Q", title="cross-entropy, nats", scale=alt.Scale(domainMin=0)),
            color=alt.Color("rows:N", title="rows", scale=names),
            tooltip=["step:Q", "rows:N", alt.Tooltip("loss:Q", format=".4f")],
        )
    )
    kept = alt.Chart(alt.Data(values=[{"step": run.kept_step}])).mark_rule(strokeDash=[5, 3], color="#444444")
    return spec_of((chart + kept.encode(x="step:Q")).properties(width=620, height=180))


def _banded_lines(
    report: Report, rows: list[dict[str, Any]], by: str, scale: alt.Scale, title: str, legend: str
) -> Any:
    """Lines of `value` by layer with their intervals, one for each kind."""
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=layer_axis(report), color=alt.Color(f"{by}:N", title=legend, scale=scale)
    )
    y = alt.Scale(zero=False)
    band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.15)
    line = base.mark_line(point=alt.OverlayMarkDef(size=45, filled=True)).encode(
        y=alt.Y("value:Q", title=title, scale=y),
        tooltip=["layer:Q", f"{by}:N", alt.Tooltip("value:Q", format=".4f"), *_interval_tips()],
    )
    if not _has_intervals(rows):
        return alt.layer(line)
    return alt.layer(band.encode(y=alt.Y("low:Q", title=title, scale=y), y2="high:Q"), line)


def _has_intervals(rows: list[dict[str, Any]]) -> bool:
    """Vega warns of an area without a point."""
    return any(row["low"] is not None for row in rows)


def _interval_tips() -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{end}:Q", format=".4f", title=f"95 % {end}") for end in ("low", "high")]


def layer_axis(report: Report) -> alt.X:
    """Layers from 0 to L, with whole numbers at the ticks."""
    last = report.layers[-1].index
    ticks = list(range(0, last + 1, 1 + last // 24))
    return alt.X(
        "layer:Q",
        title="layer (0: embeddings)",
        axis=alt.Axis(values=ticks, format="d"),
        scale=alt.Scale(domain=[-0.2, last + 0.2], nice=False),
    )


def from_zero(values: list[Any]) -> alt.Scale:
    """A scale that begins at 0 and shows at least 0 to 1, so that a small drift looks small."""
    return alt.Scale(domain=[min(0.0, *values), max(1.0, *values)])


STYLE: Spec = {
    "view": {"continuousWidth": 300, "continuousHeight": 300, "stroke": None},
    "axis": {"gridColor": "#e6e6e6", "labelFontSize": 12, "titleFontSize": 12},
    "font": "system-ui, sans-serif",
    "legend": {"symbolOpacity": 1},
}


def spec_of(chart: Any) -> Spec:
    """The chart in the report's type and grid, as Vega-Lite.

    The style is added to the finished document, because altair copies all data at every `configure`. Tests validate it.
    """
    spec: Spec = chart.to_dict(validate=False)
    spec["config"] = STYLE
    return spec
