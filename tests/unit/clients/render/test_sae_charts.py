"""Charts of the sparse autoencoders: which numbers they show, and when there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import pytest
import vl_convert

from layerdrift.contract.report import Report, SaeRun
from layerdrift.render import sae_charts
from layerdrift.render.charts import Spec
from tests.builders.reports import report, turned_over

DENSITY = [0, 0, 0, 10, 30, 40, 15, 5, 0, 0]


def rows(spec: Spec | None) -> list[dict[str, Any]]:
    assert spec is not None
    found: list[dict[str, Any]] = spec["data"]["values"]
    return found


def with_density() -> Report:
    made = report()
    for layer in made.layers:
        assert layer.sae is not None
        for side in (layer.sae.base, layer.sae.tuned):
            side.density = DENSITY
    return made


def run(name: str, *points: tuple[int, list[float]]) -> SaeRun:
    curve = [{"step": step, "unexplained": unexplained} for step, unexplained in points]
    body = {"name": name, "steps": 20, "planned_steps": 40, "batch": 2048, "learning_rate": 3e-3, "curve": curve}
    return SaeRun.model_validate(body | {"autoencoders": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("figure", "given"),
    [
        (sae_charts.quality, report()),
        (sae_charts.turnover, turned_over()),
        (sae_charts.density, with_density()),
        (sae_charts.training, report(sae_runs=[run("training", (10, [0.6, 0.5, 0.9]))])),
    ],
    ids=["quality", "turnover", "density", "training"],
)
def test_every_figure_can_be_drawn(figure: Callable[[Report], Spec], given: Report) -> None:
    spec = figure(given)
    alt.Chart.from_dict(spec, validate=True)
    svg = vl_convert.vegalite_to_svg(spec)
    assert svg.startswith("<svg")
    assert "NaN" not in svg


@pytest.mark.parametrize(
    "figure",
    [sae_charts.quality, sae_charts.turnover, sae_charts.density, sae_charts.training],
    ids=lambda one: one.__name__,
)
def test_without_autoencoders_there_is_no_figure(figure: Callable[[Report], Spec | None]) -> None:
    assert figure(report(with_sae=False)) is None


@pytest.mark.parametrize(
    "figure", [sae_charts.turnover, sae_charts.density, sae_charts.training], ids=lambda one: one.__name__
)
def test_what_was_not_asked_of_the_autoencoders_has_no_figure(figure: Callable[[Report], Spec | None]) -> None:
    assert figure(report()) is None


def test_each_layer_has_its_two_autoencoders_and_the_transferred_one() -> None:
    found = [(row["autoencoder"], row["fvu"]) for row in rows(sae_charts.quality(report())) if row["layer"] == 2]
    assert found == [("base SAE on base", 0.2), ("tuned SAE on tuned", 0.2), ("base SAE on tuned", 0.3)]


def test_a_random_model_is_drawn_at_the_layers_where_it_was_trained_on() -> None:
    given = report()
    first = given.layers[1].sae
    assert first is not None
    first.random_weights = first.base.model_copy(update={"fvu": 0.4})
    found = rows(sae_charts.quality(given))
    assert [row for row in found if row["autoencoder"] == "SAE on random weights"] == [
        {"layer": 1, "autoencoder": "SAE on random weights", "fvu": 0.4}
    ]


def test_every_fate_stands_beside_its_floor() -> None:
    found = rows(sae_charts.turnover(turned_over()))
    assert len(found) == 4 * 2 * 3
    shown = {(row["trained on"].split("'")[0], row["fate"]): row["latents"] for row in found if row["layer"] == 1}
    assert shown == {
        ("the tuned model", "shifted"): 7,
        ("the tuned model", "lost"): 5,
        ("the tuned model", "new"): 4,
        ("the base model", "shifted"): 3,
        ("the base model", "lost"): 1,
        ("the base model", "new"): 1,
    }


def test_firing_rates_are_shares_of_the_latents_in_bins_of_percents() -> None:
    found = [row for row in rows(sae_charts.density(with_density())) if row["layer"] == 1 and row["model"] == "tuned"]
    assert [row["share"] for row in found] == [count / 100 for count in DENSITY]
    assert [row["fires on"] for row in found][:2] == ["none", "0.00316 to 0.01 %"]
    assert found[-1]["fires on"] == "31.6 to 100 %"


def test_the_course_of_a_training_is_the_median_and_the_range_over_its_autoencoders() -> None:
    first, second = (10, [0.6, 0.5, 0.9]), (20, [0.3, 0.2, 0.4])
    found = rows(sae_charts.training(report(sae_runs=[run("crosscoder", first, second)])))
    assert [(row["step"], row["least"], row["median"], row["most"]) for row in found] == [
        (10, 0.5, 0.6, 0.9),
        (20, 0.2, 0.3, 0.4),
    ]


def test_several_trainings_stand_side_by_side_in_the_order_they_ran() -> None:
    runs = [run("warm_start", (10, [0.5])), run("training", (10, [0.5]))]
    found = sae_charts.training(report(sae_runs=runs))
    assert found is not None
    assert found["facet"]["column"]["sort"] == ["the warm start", "the training"]


def test_a_training_that_ended_before_its_first_point_has_no_figure() -> None:
    assert sae_charts.training(report(sae_runs=[run("training")])) is None
