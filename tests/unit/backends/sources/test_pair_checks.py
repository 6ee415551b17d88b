"""What is refused from the configurations of a request's models alone."""

from __future__ import annotations

from typing import Any

import pytest

from backends.sources.checkpoint_configs import Shape
from backends.sources.pair_checks import check_layers, check_shapes
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest


def request(analysis: dict[str, Any]) -> AnalysisRequest:
    return AnalysisRequest.model_validate(
        {
            "base": {"uri": "s3://models/a"},
            "tuned": {"uri": "s3://models/b"},
            "dataset": {"uri": "s3://data/a.csv"},
            "analysis": analysis,
        }
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [(Shape(3, 8), "differ in blocks: base 2, tuned 3"), (Shape(2, 16), "differ in hidden width: base 8, tuned 16")],
)
def test_another_shape_is_refused_at_its_model(other: Shape, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        check_shapes(Shape(2, 8), other, "/tuned/uri")
    assert raised.value.errors[0].pointer == "/tuned/uri"


@pytest.mark.parametrize("other", [Shape(2, 8), Shape(None, 8), Shape(2, None)])
def test_an_equal_shape_and_one_that_is_not_told_pass(other: Shape) -> None:
    check_shapes(Shape(2, 8), other, "/tuned/uri")


@pytest.mark.parametrize(
    ("analysis", "pointer"),
    [
        ({"sae": {"layers": [1, 5]}}, "/analysis/sae/layers"),
        ({"learned": {"autoencoder": {"layers": [5]}}}, "/analysis/learned/autoencoder/layers"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused_at_once(analysis: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InputError, match="there is no layer 5; the model's layers are 0 to 4") as raised:
        check_layers(request(analysis), Shape(4, 8))
    assert raised.value.errors[0].pointer == pointer
    check_layers(request(analysis), Shape(5, 8))
    check_layers(request(analysis), Shape(None, 8))


def test_more_active_latents_than_there_are_are_refused_at_once() -> None:
    asked = request({"learned": {"autoencoder": {"width": 1, "k": 17}}})
    with pytest.raises(InputError, match=r"k = 17 exceeds the number of latents \(16\)") as raised:
        check_layers(asked, Shape(4, 16))
    assert raised.value.errors[0].pointer == "/analysis/learned/autoencoder/k"
    check_layers(asked, Shape(4, 17))
    check_layers(asked, Shape(4, None))


@pytest.mark.parametrize("analysis", [{}, {"sae": None, "learned": None}, {"learned": {"autoencoder": {}}}])
def test_layers_that_are_chosen_for_the_request_fit_any_depth(analysis: dict[str, Any]) -> None:
    for blocks in (1, 2, 30):
        check_layers(request(analysis), Shape(blocks, 64))


def test_blocks_for_adapters_that_the_model_does_not_have_are_refused_at_once() -> None:
    body = {
        "base": {"uri": "s3://models/a"},
        "finetune": {"method": "lora", "lora": {"layers": [2, 5]}},
        "dataset": {"uri": "s3://data/a.csv"},
    }
    asked = AnalysisRequest.model_validate(body)
    with pytest.raises(InputError, match="there is no block 5; the model's blocks are 1 to 4") as raised:
        check_layers(asked, Shape(4, 16))
    assert raised.value.errors[0].pointer == "/finetune/lora/layers"
    check_layers(asked, Shape(5, 16))
