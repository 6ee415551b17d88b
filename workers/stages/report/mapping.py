"""From what the stages found to the schema of the report: a class of `workers.results` and its namesake."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from layerdrift.contract.report import ReportModel

Model = TypeVar("Model", bound=ReportModel)


def as_schema(model: type[Model], result: object) -> Model:
    """A result as the model of its name, with all results inside it.

    Raises:
        pydantic.ValidationError: a number is NaN, infinite or out of its range.
    """
    return model.model_validate(result, from_attributes=True)


def optional_as(model: type[Model], result: object | None) -> Model | None:
    """The same; None stays None."""
    return None if result is None else as_schema(model, result)


def all_as(model: type[Model], results: Iterable[object]) -> list[Model]:
    """The same of several."""
    return [as_schema(model, result) for result in results]
