"""Where finished trainings of the base model are kept for other analyses; knows no bucket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from torch import Tensor


class FinishedTrainings(Protocol):
    """Trainings whose numbers depend on the base model, the texts and the settings alone, by their names.

    A name says all that the numbers depend on.
    """

    def find(self, name: str) -> Sequence[dict[str, Tensor]] | None:
        """Its parts; None where it is not there, or not whole any more."""

    def keep(self, name: str, parts: Iterable[dict[str, Tensor]]) -> None:
        """Keeps it; what goes wrong is no fault of the training's."""


class NothingKept:
    """Keeps nothing."""

    def find(self, name: str) -> None:
        """None."""

    def keep(self, name: str, parts: Iterable[dict[str, Tensor]]) -> None:
        """Does nothing."""


NOTHING_KEPT: Final = NothingKept()
