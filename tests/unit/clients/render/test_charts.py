"""The figures of a report: which numbers they show, and what they leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import altair as alt
import pytest
import vl_convert

from layerdrift.contract.report import Measured, Report
from layerdrift.render import charts
from tests.builders.reports import report, undefined

OPTIONAL = [
    charts.weight_drift,
    charts.grafts,
    charts.probes,
    charts.consistency,
    charts.sweep,
    charts.trajectory,
    charts.training,
]
DRAWN = [charts.drift_curve, charts.measures, charts.cka_map, *OPTIONAL]


def tables(spec: Any) -> Iterator[list[dict[str, Any]]]:
    """The rows of every data set in a figure."""
    for value in spec.values() if isinstance(spec, dict) else spec:
        if isinstance(value, (dict, list)):
            yield from tables(value)
    if isinstance(spec, dict) and isinstance(spec.get("values"), list) and isinstance(spec["values"][0], dict):
        yield spec["values"]


def rows(spec: charts.Spec | None, column: str) -> list[dict[str, Any]]:
    """The rows of the first data set that has a column."""
    assert spec is not None
    return next(table for table in tables(spec) if column in table[0])


def marks(spec: charts.Spec) -> list[str]:
    """Kinds of marks in a figure of layers."""
    return [layer["mark"]["type"] for layer in spec["layer"]]


@pytest.mark.parametrize("figure", DRAWN, ids=lambda one: one.__name__)
def test_every_figure_can_be_drawn(figure: Callable[[Report], charts.Spec]) -> None:
    spec = figure(report())
    alt.Chart.from_dict(spec, validate=True)
    svg = vl_convert.vegalite_to_svg(spec)
    assert svg.startswith("<svg")
    assert "NaN" not in svg


@pytest.mark.parametrize("figure", OPTIONAL, ids=lambda one: one.__name__)
def test_what_was_not_measured_has_no_figure(figure: Callable[[Report], charts.Spec | None]) -> None:
    bare = report(finetune=None, trajectory=None, probes=None, causal={})
    for layer in bare.layers:
        layer.weights, layer.task_consistency, layer.probe, layer.graft = {}, None, None, None
    assert figure(bare) is None


def test_the_drift_curve_has_each_layer_in_its_zone() -> None:
    found = rows(charts.drift_curve(report()), "drift")
    assert [(row["layer"], row["zone"]) for row in found] == [
        (0, "general"),
        (1, "general"),
        (2, "specialised"),
        (3, "specialised"),
    ]
    assert [row["drift"] for row in found] == [layer.drift for layer in report().layers]


def test_the_interval_of_a_drift_is_that_of_cka_turned_over() -> None:
    for row in rows(charts.drift_curve(report()), "drift"):
        assert row["low"] == pytest.approx(row["drift"] - 0.01)
        assert row["high"] == pytest.approx(row["drift"] + 0.01)


def test_a_layer_without_an_interval_leaves_a_gap_in_the_band_and_none_at_all_leave_no_band() -> None:
    gap = charts.drift_curve(report(constant_views=("token",)))
    assert [row["low"] is None for row in rows(gap, "drift")] == [True, False, False, False]
    assert "area" in marks(gap)
    assert "area" not in marks(charts.drift_curve(report(intervals=False)))


def test_only_zones_that_the_report_has_are_in_the_legend() -> None:
    (points,) = (layer for layer in charts.drift_curve(report())["layer"] if layer["mark"].get("type") == "point")
    assert points["encoding"]["color"]["scale"]["domain"] == ["general", "specialised"]


@pytest.mark.parametrize(
    ("drifts", "domain"),
    [([0.0, 0.01], [0.0, 1.0]), ([-0.002, 0.5], [-0.002, 1.0]), ([0.2, 1.25], [0.0, 1.25])],
)
def test_a_drift_is_seen_on_the_scale_from_0_to_1_unless_it_lies_outside(
    drifts: list[float], domain: list[float]
) -> None:
    assert charts.from_zero(drifts).to_dict()["domain"] == domain


def test_noise_floors_are_drawn_beside_the_drift() -> None:
    found = {(row["reference"], row["level"]) for row in rows(charts.drift_curve(report()), "reference")}
    assert found == {("numerical resolution", 0.001), ("two seeds against each other", 0.02)}


def test_random_weights_are_drawn_at_the_layers_where_they_were_measured() -> None:
    given = report()
    for layer in given.layers:
        layer.noise_floors = {}
    assert "level" not in str(charts.drift_curve(given))
    given.layers[2].random_weights_drift = 0.9
    assert rows(charts.drift_curve(given), "reference") == [{"layer": 2, "reference": "random weights", "level": 0.9}]


def test_a_measure_is_left_out_where_it_is_undefined_or_was_not_computed_for_the_view() -> None:
    found = rows(charts.measures(report()), "measure")
    at = {(row["layer"], row["view"], row["measure"]) for row in found}
    assert (1, "first or last token", "debiased CKA") in at
    assert (0, "first or last token", "debiased CKA") not in at
    assert {view for _, view, measure in at if measure == "RSA (mean view)"} == {"mean over a text"}
    assert None not in [row["value"] for row in found]


def test_the_noise_floor_of_a_measure_is_drawn_only_where_one_is_known() -> None:
    given = report()
    assert "tick" not in [layer["mark"]["type"] for layer in charts.measures(given)["spec"]["layer"]]
    given.layers[1].similarity["mean"].cka.noise_floor = 0.999
    assert "tick" in [layer["mark"]["type"] for layer in charts.measures(given)["spec"]["layer"]]


def test_pairs_of_layers_without_a_cka_are_empty_cells() -> None:
    found = rows(charts.cka_map(report()), "cka")
    assert len(found) == 4 * 4 - 1
    assert (0, 0) not in {(row["base"], row["tuned"]) for row in found}


@pytest.mark.parametrize(("layers", "kinds"), [(16, ["rect", "text"]), (17, ["rect"])])
def test_numbers_stand_in_the_cells_while_there_is_room(layers: int, kinds: list[str]) -> None:
    found = charts.cka_map(report(layers=layers))
    assert (marks(found) if "layer" in found else [found["mark"]["type"]]) == kinds


def test_grafts_are_drawn_in_the_unit_they_were_measured_in_beside_the_whole_model() -> None:
    given = report(causal={"graft": {"measure": "kl", "ungrafted": 0.25, "examples": 50}})
    found = charts.grafts(given)
    assert {row["kind"] for row in rows(found, "kind")} == {"base layers 0 to k", "base block k alone"}
    assert {"value": 0.25} in [row for table in tables(found) for row in table]
    assert "KL from the tuned model, bits" in str(found)


def test_probes_come_with_their_controls_which_have_no_interval() -> None:
    found = rows(charts.probes(report()), "probe")
    first = {row["probe"]: (row["value"], row["low"]) for row in found if row["layer"] == 0}
    assert first == {
        "base model": (0.7, pytest.approx(0.69)),
        "tuned model": (0.9, pytest.approx(0.89)),
        "base, shuffled labels": (0.5, None),
        "tuned, shuffled labels": (0.5, None),
    }


def test_probes_of_some_layers_alone_are_no_curve() -> None:
    given = report()
    given.layers[2].probe = None
    assert charts.probes(given) is None


def test_reproducibility_is_drawn_in_place_of_the_older_consistency() -> None:
    given = report()
    assert {row["value"] for row in rows(charts.consistency(given), "of")} == {0.8}
    for layer in given.layers:
        layer.reproducibility = Measured(value=0.6)
    given.layers[1].reproducibility = undefined()
    assert [row["value"] for row in rows(charts.consistency(given), "of")] == [0.6, None, 0.6, 0.6]


def test_a_sweep_shows_every_seed_at_every_depth_that_was_tried() -> None:
    found = charts.sweep(report())
    assert [(row["frozen"], row["seed"], row["accuracy"]) for row in rows(found, "frozen")] == [
        (0, "0", 0.9),
        (0, "1", 0.9),
        (2, "0", 0.9),
        (2, "1", pytest.approx(0.86)),
    ]
    assert "'values': [0, 2]" in str(found)


def test_the_course_of_a_fine_tune_begins_without_drift_at_step_0() -> None:
    found = rows(charts.trajectory(report()), "drift")
    assert [row["drift"] for row in found if row["step"] == 0] == [0.0] * 4
    assert sorted({row["step"] for row in found}) == [0, 5, 10]


def test_the_losses_are_drawn_with_the_step_whose_weights_were_kept() -> None:
    found = charts.training(report())
    assert [(row["step"], row["loss"], row["rows"]) for row in rows(found, "loss")] == [
        (10, 0.6, "trained on"),
        (20, 0.3, "trained on"),
        (10, 0.5, "held out"),
        (20, 0.6, "held out"),
    ]
    assert [{"step": 10}] in list(tables(found))


@pytest.mark.parametrize(("layers", "ticks", "step"), [(2, 2, 1), (24, 24, 1), (25, 13, 2), (97, 20, 5)])
def test_the_ticks_of_the_layers_are_whole_numbers_and_at_most_25(layers: int, ticks: int, step: int) -> None:
    axis: Any = charts.layer_axis(report(layers=layers)).to_dict()
    values = axis["axis"]["values"]
    assert (len(values), values[1] - values[0]) == (ticks, step)
