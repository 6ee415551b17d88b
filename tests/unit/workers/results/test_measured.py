from __future__ import annotations

import math

import pytest

from workers.results.measured import Measured


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "low", "high", "noise_floor"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_is(field: str, number: float) -> None:
    fields: dict[str, float] = {"value": 0.5, field: number}
    with pytest.raises(ValueError, match="must be finite"):
        Measured(**fields)  # type: ignore[arg-type]


def test_what_was_not_computed_says_why_and_has_no_ends() -> None:
    found = Measured(value=None, undefined="the rows have no variance here")
    assert (found.low, found.high, found.noise_floor) == (None, None, None)
