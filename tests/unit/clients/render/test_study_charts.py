"""The figures of a study: valid Vega-Lite, every member and layer in them, nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import pytest
import vl_convert

from layerdrift.contract.study_report import StudyReport
from layerdrift.render import study_charts
from tests.builders.studies import made_study, member_report, similarity, study_request

FIGURES: list[Callable[[StudyReport], dict[str, Any] | None]] = [
    study_charts.drift_curves,
    study_charts.heat_map,
    study_charts.zones,
    study_charts.generality,
    study_charts.spread,
    study_charts.front,
    study_charts.training,
    study_charts.lora,
    study_charts.shared_changes,
    study_charts.tree,
]
TRAJECTORY = {"steps": [5], "drift": [[0, 0.1, 0.2, 0.3]], "relative_l2": [[0, 0.1, 0.2, 0.3]], "tokens": 100}


def whole() -> StudyReport:
    names = ("reviews-0", "reviews-1", "spam-0", "spam-1")
    rule = {"id": "a", "path": "layers[0].drift", "max": 1, "message": "m"}
    reports = {
        name: member_report([0, 0.1, 0.2, 0.3 + place / 20], accuracy=0.8 + place / 20, trajectory=TRAJECTORY)
        for place, name in enumerate(names)
    }
    found = made_study(study_request(policy={"rules": [rule]}), reports)
    return found.model_copy(update={"similarity": similarity(names)})


def rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    inside = [*spec.get("layer", []), *([spec["spec"]] if "spec" in spec else [])]
    own = spec.get("data", {}).get("values", [])
    return [*own, *(row for part in inside for row in rows(part))]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.__name__)
def test_a_figure_is_valid_and_can_be_drawn(figure: Callable[[StudyReport], dict[str, Any] | None]) -> None:
    spec = figure(whole())
    assert spec is not None
    alt.Chart.from_dict(spec, validate=True)
    assert vl_convert.vegalite_to_svg(spec).startswith("<svg")


def test_every_member_with_a_report_is_in_the_curves_at_every_layer() -> None:
    found = rows(study_charts.drift_curves(made_study()))
    assert len({(row["member"], row["layer"]) for row in found}) == 4 * 4


def test_members_without_a_report_are_left_out() -> None:
    report = made_study(reports={"spam-0": member_report([0, 0.1])})
    assert {row["member"] for row in rows(study_charts.heat_map(report))} == {"spam-0"}


def test_a_layer_has_one_mark_for_each_task() -> None:
    spec = study_charts.generality(made_study())
    assert spec is not None
    assert len(rows(spec)) == 4 * 2


def test_one_task_has_no_map_and_no_repeats_no_spread() -> None:
    members = [one.model_dump() for one in study_request().members[:1]]
    members.append({"name": "b", "task": "reviews", "tuned": {"uri": "s3://m/b"}, "dataset": {"uri": "s3://d/a.csv"}})
    report = made_study(study_request(members=members), {"b": member_report([0, 0.1], outputs=None)})
    for figure in (study_charts.generality, study_charts.spread, study_charts.front, study_charts.training):
        assert figure(report) is None


def test_training_begins_with_the_base_which_has_no_drift() -> None:
    spec = study_charts.training(whole())
    assert spec is not None
    assert {row["drift"] for row in rows(spec) if row["step"] == 0} == {0.0}
    late = [row["drift"] for row in rows(spec) if row["step"] == 5 and row["layers"] == "late layers"]
    assert late == [0.3] * 4


def test_pairs_of_one_task_and_of_two_are_told_apart() -> None:
    spec = study_charts.shared_changes(whole())
    assert spec is not None
    found = {row["pair"]: row["of"] for row in rows(spec)}
    assert len(found) == 6
    assert [pair for pair, of in found.items() if of == study_charts.WITHIN] == [
        "reviews-1 and reviews-0",
        "spam-1 and spam-0",
    ]
    assert {row["layer"] for row in rows(spec)} == {1, 2, 3}


def test_the_tree_names_its_leaves_in_an_order_without_crossings() -> None:
    spec = study_charts.tree(whole())
    assert spec is not None
    assert len(rows(spec)) == 3 * 4
    labels = spec["encoding"]["y"]["axis"]["labelExpr"]
    places = [labels.index(name) for name in ("reviews-0", "reviews-1", "spam-0", "spam-1")]
    assert places == sorted(places)
