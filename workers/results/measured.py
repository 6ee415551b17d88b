"""A number with its interval and its noise floor."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number with its 95 % interval and its noise floor. None: not computed.

    Raises:
        ValueError: one of the numbers is not finite.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    noise_floor: float | None = None
    undefined: str | None = None

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high, self.noise_floor)
        if any(number is not None and not math.isfinite(number) for number in numbers):
            raise ValueError(f"a number with its interval must be finite: {self}")
