"""The numbers of a report that trackers draw."""

from __future__ import annotations

from layerdrift.contract.report import Measured
from layerdrift.integrations.numbers import of_layers
from tests.builders.reports import report, turned_over, undefined


def test_each_layer_has_its_numbers_under_the_names_of_the_report() -> None:
    given = turned_over()
    given.layers[3].relative_drift = Measured(value=0.9)
    found = of_layers(given)
    assert len(found) == 4
    assert {name: round(value, 6) for name, value in found[3].items()} == {
        "drift": 1.0,
        "excess_drift": 0.98,
        "relative_drift": 0.9,
        "relative_l2": 1.3,
        "cosine_centred": 0.0,
        "graft": 0.6,
        "probe": 0.9,
        "sae_transfer_excess": 0.1,
        "sae_new_latents": 3.0,
        "sae_lost_latents": 4.0,
    }


def test_a_zero_is_a_number_and_what_is_undefined_is_left_out() -> None:
    given = report(with_sae=False)
    for layer in given.layers:
        layer.probe = layer.graft = None
    given.layers[0].similarity["token"].cosine_centred = undefined()
    first, second, *_ = of_layers(given)
    assert first == {"drift": 0.0, "excess_drift": 0.0, "relative_l2": 0.0}
    assert "cosine_centred" in second


def test_differences_of_latents_that_are_withheld_are_no_zero() -> None:
    given = turned_over()
    sae = given.layers[0].sae
    assert sae is not None
    assert sae.warm_start is not None
    sae.warm_start.new_excess = sae.warm_start.lost_excess = None
    assert not [name for name in of_layers(given)[0] if name.endswith("_latents")]


def test_counts_are_sent_as_floats() -> None:
    assert {type(value) for layer in of_layers(turned_over()) for value in layer.values()} == {float}
