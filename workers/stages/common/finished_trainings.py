"""Where finished trainings of the base model are kept for other analyses; knows no bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class FinishedTrainings(Protocol):
    """Trainings whose numbers depend on the base model, the texts and the settings alone, by their names.

    A name says all that the numbers depend on.
    """

    def find(self, name: str) -> Sequence[dict[str, Tensor]] | None:
        """Its parts; None where it is not there, or not whole any more."""

    def keep(self, name: str, parts: Sequence[dict[str, Tensor]]) -> None:
        """Keeps it; what goes wrong is no fault of the training's."""
