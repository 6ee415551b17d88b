"""The figures of a study's report as Vega-Lite. A variable `member` in each links them: the page sets it in all."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import altair as alt

from layerdrift.contract.study_report import StudyReport, StudyReportMember
from layerdrift.render.charts import DASH, ZONE_COLOURS, Spec, from_zero, spec_of

TASK_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A7B6B", "#999999"]
"""Okabe & Ito 2008; further tasks take them again, with the names to tell them apart."""

GENERAL_COLOURS = {"general": "#0072B2", "in some members": "#B9B9B9", "changed": "#D55E00"}
THIRDS = ("early layers", "middle layers", "late layers")

_LINKED = "member == '' || datum.member == member"


def _member() -> Any:
    return alt.param(name="member", value="")


def _shown(report: StudyReport) -> list[StudyReportMember]:
    return [member for member in report.members if member.layers]


def _tasks(report: StudyReport) -> alt.Color:
    colours = [TASK_COLOURS[index % len(TASK_COLOURS)] for index in range(len(report.tasks))]
    return alt.Color("task:N", title="task", scale=alt.Scale(domain=report.tasks, range=colours))


def _axis(report: StudyReport) -> alt.X:
    last = report.layers[-1].index
    return alt.X(
        "layer:Q",
        title="layer (0: embeddings)",
        axis=alt.Axis(values=list(range(0, last + 1, 1 + last // 24)), format="d"),
        scale=alt.Scale(domain=[-0.2, last + 0.2], nice=False),
    )


def drift_curves(report: StudyReport) -> Spec:
    """Drift by layer, a line for each member in the colour of its task, with its 95 % intervals."""
    rows = [
        {
            "layer": layer.index,
            "member": member.name,
            "task": member.task,
            "drift": layer.drift.value,
            "low": layer.drift.low,
            "high": layer.drift.high,
        }
        for member in _shown(report)
        for layer in member.measured
    ]
    title = "drift, 1 − CKA (0: the same)"
    scale = from_zero([row["drift"] for row in rows])
    base = alt.Chart(alt.Data(values=rows)).encode(x=_axis(report), detail="member:N", color=_tasks(report))
    band = base.transform_filter("isValid(datum.low)").mark_area()
    band = band.encode(
        y=alt.Y("low:Q", title=title, scale=scale),
        y2="high:Q",
        opacity=alt.condition(_LINKED, alt.value(0.12), alt.value(0.01)),
    )
    line = base.mark_line(point=alt.OverlayMarkDef(size=35, filled=True)).encode(
        y=alt.Y("drift:Q", title=title, scale=scale),
        opacity=alt.condition(_LINKED, alt.value(1.0), alt.value(0.1)),
        tooltip=["member:N", "task:N", "layer:Q", alt.Tooltip("drift:Q", format=".4f"), *_ends()],
    )
    layers = [band, line] if any(row["low"] is not None for row in rows) else [line]
    return spec_of(alt.layer(*layers).add_params(_member()).properties(width=620, height=300))


def _ends() -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{end}:Q", format=".4f", title=f"95 % {end}") for end in ("low", "high")]


def heat_map(report: StudyReport) -> Spec:
    """Drift of every member at every layer."""
    rows = [
        {"layer": layer.index, "member": member.name, "task": member.task, "drift": layer.drift.value}
        for member in _shown(report)
        for layer in member.measured
    ]
    colour = alt.Color("drift:Q", title="drift", scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True))
    return _cells(report, rows, colour, [alt.Tooltip("drift:Q", format=".4f")])


def zones(report: StudyReport) -> Spec:
    """The zone of every layer, by member."""
    rows = [
        {"layer": layer.index, "member": member.name, "task": member.task, "zone": layer.zone}
        for member in _shown(report)
        for layer in member.measured
    ]
    found = [zone for zone in ZONE_COLOURS if any(row["zone"] == zone for row in rows)]
    scale = alt.Scale(domain=found, range=[ZONE_COLOURS[zone] for zone in found])
    return _cells(report, rows, alt.Color("zone:N", title="zone", scale=scale), ["zone:N"])


def _cells(report: StudyReport, rows: list[dict[str, Any]], colour: alt.Color, tips: Sequence[Any]) -> Spec:
    """Members down, layers across."""
    names = [member.name for member in _shown(report)]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer (0: embeddings)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("member:N", title=None, sort=names),
            color=colour,
            opacity=alt.condition(_LINKED, alt.value(1.0), alt.value(0.25)),
            tooltip=["member:N", "task:N", "layer:O", *tips],
        )
        .add_params(_member())
        .properties(width=520, height=max(60, 22 * len(names)))
    )
    return spec_of(chart)


def generality(report: StudyReport) -> Spec | None:
    """For which tasks each layer is general; None with one task."""
    if len(report.tasks) < 2:
        return None
    kinds = list(GENERAL_COLOURS)
    rows = [
        {"layer": layer.index, "task": task, "layer is": kind}
        for layer in report.layers
        for kind, tasks in zip(kinds, (layer.general_for, layer.mixed_for, layer.changed_for), strict=True)
        for task in tasks
    ]
    scale = alt.Scale(domain=kinds, range=list(GENERAL_COLOURS.values()))
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer (0: embeddings)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("task:N", title=None, sort=report.tasks),
            color=alt.Color("layer is:N", title="layer is", scale=scale),
            tooltip=["task:N", "layer:O", "layer is:N"],
        )
        .properties(width=520, height=max(50, 26 * len(report.tasks)))
    )
    return spec_of(chart)


def spread(report: StudyReport) -> Spec | None:
    """Standard deviation of the drift over seeds and over tasks, by layer; None without repeats."""
    rows = [
        {"layer": layer.index, "over": over, "sd": found.value, "low": found.low, "high": found.high}
        for layer in report.layers
        for over, found in (("seeds", layer.seed_sd), ("tasks", layer.task_sd))
        if found.value is not None
    ]
    if not rows:
        return None
    scale = alt.Scale(domain=["seeds", "tasks"], range=["#CC79A7", "#0072B2"])
    title = "standard deviation of the drift"
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_axis(report), color=alt.Color("over:N", title="over", scale=scale)
    )
    band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.15)
    line = base.mark_line(point=alt.OverlayMarkDef(size=45, filled=True)).encode(
        y=alt.Y("sd:Q", title=title),
        tooltip=["layer:Q", "over:N", alt.Tooltip("sd:Q", format=".4f"), *_ends()],
    )
    chart = alt.layer(band.encode(y=alt.Y("low:Q", title=title), y2="high:Q"), line)
    return spec_of(chart.properties(width=620, height=220))


def front(report: StudyReport) -> Spec | None:
    """The metric against the mean drift, by task; None where no task has a metric."""
    rows = [
        {
            "member": one.name,
            "task": ranking.task,
            "metric": one.metric,
            "drift": one.mean_drift,
            "policy": one.decision or "not evaluated",
            "front": one.on_front,
        }
        for ranking in report.rankings
        if ranking.metric is not None
        for one in ranking.members
    ]
    if not rows:
        return None
    scale = alt.Scale(
        domain=["pass", "warn", "fail", "not evaluated"], range=["#009E73", "#E69F00", "#D55E00", "#999999"]
    )
    base = alt.Chart().encode(
        x=alt.X("drift:Q", title="mean drift of layers 1 to L", axis=alt.Axis(tickCount=4)),
        y=alt.Y("metric:Q", title="metric", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
    )
    line = base.transform_filter("datum.front").mark_line(strokeDash=DASH, color="#888888")
    points = base.mark_point(filled=True, size=90).encode(
        color=alt.Color("policy:N", title="policy", scale=scale),
        shape=alt.Shape("front:N", title="on the Pareto front"),
        opacity=alt.condition(_LINKED, alt.value(1.0), alt.value(0.15)),
        tooltip=["member:N", "task:N", alt.Tooltip("metric:Q", format=".4f"), alt.Tooltip("drift:Q", format=".4f")],
    )
    layers = [line, points] if any(row["front"] for row in rows) else [points]
    chart = (
        alt.layer(*layers, data=alt.Data(values=rows))
        .properties(width=260, height=200)
        .facet(facet=alt.Facet("task:N", title=None, sort=report.tasks), columns=2)
        .resolve_scale(x="independent", y="independent")
        .add_params(_member())
    )
    return spec_of(chart)


WITHIN, ACROSS = "one task", "two tasks"


def shared_changes(report: StudyReport) -> Spec | None:
    """Cosine of the changes of every two members, by layer; None where they were not compared."""
    found = report.similarity
    if found is None:
        return None
    tasks = {member.name: member.task for member in report.members}
    rows = [
        {
            "layer": layer.index,
            "pair": f"{one} and {other}",
            "of": WITHIN if tasks[one] == tasks[other] else ACROSS,
            "cosine": layer.change_cosine[row][column],
            "low": layer.change_cosine_low[row][column],
            "high": layer.change_cosine_high[row][column],
            "CKA": layer.cka[row][column],
            "overlap": layer.overlap[row][column],
        }
        for layer in found.layers
        for row, one in enumerate(found.members)
        for column, other in enumerate(found.members[:row])
        if layer.change_cosine[row][column] is not None
    ]
    if not rows:
        return None
    scale = alt.Scale(domain=[WITHIN, ACROSS], range=["#CC79A7", "#0072B2"])
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_axis(report), color=alt.Color("of:N", title="members of", scale=scale)
    )
    pairs = base.mark_line(point=alt.OverlayMarkDef(size=25, filled=True), opacity=0.35).encode(
        y=alt.Y("cosine:Q", title="cosine of their changes", scale=alt.Scale(domain=[-0.2, 1], nice=False, clamp=True)),
        detail="pair:N",
        tooltip=[
            "pair:N",
            "layer:Q",
            alt.Tooltip("cosine:Q", format=".3f"),
            *_ends(),
            alt.Tooltip("CKA:Q", format=".4f"),
            alt.Tooltip("overlap:Q", format=".3f"),
        ],
    )
    means = base.mark_line(strokeWidth=4).encode(y=alt.Y("mean(cosine):Q", title="cosine of their changes"))
    return spec_of(alt.layer(pairs, means).properties(width=620, height=240))


def tree(report: StudyReport) -> Spec | None:
    """Members joined by how alike their changes are; None where there is no tree."""
    found = report.similarity
    if found is None or not found.tree:
        return None
    names = found.members
    order = _leaves(len(names), [(one.left, one.right) for one in found.tree])
    heights = {number: float(order.index(number)) for number in range(len(names))}
    distances = dict.fromkeys(range(len(names)), 0.0)
    lines: list[dict[str, Any]] = []
    for number, join in enumerate(found.tree, start=len(names)):
        top, bottom = heights[join.left], heights[join.right]
        corners = [
            (distances[join.left], top),
            (join.distance, top),
            (join.distance, bottom),
            (distances[join.right], bottom),
        ]
        lines += [{"join": number, "distance": x, "place": y, "order": step} for step, (x, y) in enumerate(corners)]
        heights[number], distances[number] = (top + bottom) / 2, join.distance
    labels = " : ".join(f"datum.value == {place} ? {json.dumps(names[number])}" for place, number in enumerate(order))
    chart = (
        alt.Chart(alt.Data(values=lines))
        .mark_line(color="#56616d")
        .encode(
            x=alt.X("distance:Q", title="1 − cosine of changes"),
            y=alt.Y(
                "place:Q",
                title=None,
                scale=alt.Scale(domain=[-0.5, len(names) - 0.5], reverse=True, nice=False),
                axis=alt.Axis(values=list(range(len(names))), labelExpr=f"{labels} : ''", grid=False, labelLimit=220),
            ),
            detail="join:N",
            order="order:Q",
        )
        .properties(width=460, height=max(60, 26 * len(names)))
    )
    return spec_of(chart)


def _leaves(members: int, joins: Sequence[tuple[int, int]]) -> list[int]:
    """The members in an order in which no branches cross."""
    inside: dict[int, list[int]] = {number: [number] for number in range(members)}
    for number, (left, right) in enumerate(joins, start=members):
        inside[number] = inside[left] + inside[right]
    return inside[members + len(joins) - 1]


def training(report: StudyReport) -> Spec | None:
    """Drift over training of every run, in the mean of its early, middle and late layers; None without snapshots."""
    rows = [
        {"step": step, "run": curve.run, "member": curve.run, "layers": third, "drift": value}
        for curve in report.training
        for step, drift in zip([0, *curve.steps], [[0.0] * len(curve.drift[0]), *curve.drift], strict=True)
        for third, value in zip(THIRDS, _thirds(drift), strict=True)
    ]
    if not rows:
        return None
    base = alt.Chart().encode(x=alt.X("step:Q", title="optimiser step"))
    line = base.mark_line(point=True).encode(
        y=alt.Y("drift:Q", title="drift, 1 − CKA", scale=from_zero([row["drift"] for row in rows])),
        color=alt.Color("run:N", title="run", scale=alt.Scale(range=TASK_COLOURS)),
        opacity=alt.condition(_LINKED, alt.value(1.0), alt.value(0.1)),
        tooltip=["run:N", "step:Q", "layers:N", alt.Tooltip("drift:Q", format=".4f")],
    )
    chart = (
        alt.layer(line, data=alt.Data(values=rows))
        .properties(width=180, height=200)
        .facet(column=alt.Column("layers:N", title=None, sort=list(THIRDS)))
        .add_params(_member())
    )
    return spec_of(chart)


def _thirds(drift: Sequence[float]) -> list[float]:
    """Means over the first, the middle and the last third of the layers above the embeddings."""
    blocks = list(drift[1:]) or list(drift)
    edges = [round(part * len(blocks) / 3) for part in range(4)]
    parts = [blocks[low:high] or blocks for low, high in itertools.pairwise(edges)]
    return [sum(part) / len(part) for part in parts]


def lora(report: StudyReport) -> Spec | None:
    """How much of the weights' change each layer has; None where no weights were compared."""
    if report.lora is None:
        return None
    rows = [
        {"layer": one.layer, "change": one.change, "rank": str(one.rank) if one.rank else "more than 16"}
        for one in report.lora.layers
    ]
    scale = alt.Scale(domain=["8", "16", "more than 16"], range=["#0072B2", "#E69F00", "#D55E00"])
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("change:Q", title="relative Frobenius norm of the change"),
            color=alt.Color("rank:N", title="rank that holds 90 %", scale=scale),
            tooltip=["layer:O", alt.Tooltip("change:Q", format=".4f"), "rank:N"],
        )
        .properties(width=520, height=200)
    )
    return spec_of(chart)
