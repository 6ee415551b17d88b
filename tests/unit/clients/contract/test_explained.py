"""What is said of a field that is wrong: the name that was meant, the limit, the choices."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from layerdrift.contract.explained import explain
from layerdrift.contract.policy import Policy
from layerdrift.contract.request import AnalysisRequest

REQUEST = {"base": {"uri": "s3://m/a"}, "tuned": {"uri": "s3://m/b"}, "dataset": {"uri": "s3://d/x.csv"}}


def said(body: dict[str, Any], model: type[AnalysisRequest | Policy] = AnalysisRequest) -> list[str]:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(body)
    return [explain(error, model) for error in raised.value.errors()]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"analysis": {"max_lenght": 8}}, "there is no field 'max_lenght'; did you mean max_length?"),
        ({"analysis": {"sae": {"widht": 4}}}, "there is no field 'widht'; did you mean width?"),
        ({"max_tokens": 500}, "there is no field 'max_tokens' here; did you mean analysis.max_tokens?"),
        ({"base": {"uri": ""}}, "must not be empty"),
        ({"base": {}}, "this field is required"),
        ({"analysis": {"max_tokens": 1}}, "must be at least 100; it is 1"),
        ({"seed": "many"}, "must be a whole number; it is 'many'"),
        (
            {"analysis": {"noise_floors": ["reseeds"]}},
            "must be one of numerical, reseed, label_shuffle; it is 'reseeds'; did you mean reseed?",
        ),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(changes: dict[str, Any], expected: str) -> None:
    assert expected in said(REQUEST | changes)


def test_a_name_that_is_like_none_comes_with_all_there_are() -> None:
    (line,) = said({"rules": [{"id": "a", "path": "layers[0].drift", "max": 1, "message": "m", "xyzzy": 1}]}, Policy)
    assert line.startswith("there is no field 'xyzzy'; possible: equals, floor, id")


def test_a_value_without_end_is_cut() -> None:
    (line,) = said(REQUEST | {"seed": "x" * 500})
    assert len(line) < 120
