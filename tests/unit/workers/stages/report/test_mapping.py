"""Every result has a namesake in the schema with the same fields: nothing is lost on the way, nothing is made up."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from layerdrift.contract import report as schema
from workers import results
from workers.results.effects import Causal, GraftInfo, Recommendation
from workers.results.measured import Measured
from workers.results.similarity import CrossLayerCka, Zone
from workers.results.text_scores import TextScores
from workers.stages.report.mapping import all_as, as_schema, optional_as


def result_classes() -> Iterator[type]:
    for module in pkgutil.iter_modules(results.__path__, f"{results.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == module.name:
                yield value


def types_of(model: type) -> dict[str, str]:
    """The types of the fields, without the modules they are from."""
    hints = get_type_hints(model)
    return {name: re.sub(r"[\w.]+\.(?=\w)|<class '|'>", "", str(hints[name])) for name in names_of(model)}


def names_of(model: Any) -> list[str]:
    fields = getattr(model, "model_fields", None)
    return sorted(fields if fields is not None else [field.name for field in dataclasses.fields(model)])


IN_NO_REPORT = {TextScores}
"""Results that are kept beside the report, as artifacts."""


@pytest.mark.parametrize(
    "result", [one for one in result_classes() if one not in IN_NO_REPORT], ids=lambda result: result.__name__
)
def test_a_result_has_the_fields_of_its_namesake(result: type) -> None:
    assert types_of(result) == types_of(getattr(schema, result.__name__))


def test_results_inside_a_result_are_mapped_too() -> None:
    found = Causal(graft=GraftInfo(measure="accuracy", ungrafted=0.8, examples=100))
    expected = schema.Causal(graft=schema.GraftInfo(measure="accuracy", ungrafted=0.8, examples=100))
    assert as_schema(schema.Causal, found) == expected
    cross = as_schema(schema.CrossLayerCka, CrossLayerCka(values=[[1.0, None]], rows=5))
    assert cross.values == [[1.0, None]]


def test_none_stays_none_and_a_list_keeps_its_order() -> None:
    assert optional_as(schema.Recommendation, None) is None
    advice = Recommendation(freeze_first=2, basis="predicted", evidence="The curve says so.")
    assert optional_as(schema.Recommendation, advice) == schema.Recommendation(**vars(advice))
    zones = [Zone(name="general", first=0, last=1, level=0.0), Zone(name="specialised", first=2, last=3, level=0.4)]
    assert [zone.first for zone in all_as(schema.Zone, zones)] == [0, 2]


def test_a_number_out_of_its_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="freeze_first"):
        as_schema(schema.Recommendation, Recommendation(freeze_first=-1, basis="none", evidence=""))
    with pytest.raises(ValidationError, match="finite"):
        as_schema(schema.CrossLayerCka, CrossLayerCka(values=[[math.nan]], rows=5))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_measured_number_is_finite_from_the_start(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Measured(value=number)
    with pytest.raises(ValueError, match="finite"):
        Measured(value=0.5, low=0.4, high=number)
