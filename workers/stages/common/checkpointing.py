"""Where long trainings keep their states for the worker that takes the job over; knows no bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Checkpoints(Protocol):
    """Where the state of an unfinished run is kept for whoever takes the job next."""

    def load(self, run: str) -> Iterator[dict[str, Tensor]] | None:
        """The last state that was saved whole, part after part; None where there is none."""

    def save(self, run: str, number: int, parts: Iterable[dict[str, Tensor]]) -> None:
        """Keeps a state in place of an earlier one of that run; what goes wrong is no fault of the run's."""


class NoCheckpoints:
    """Keeps nothing."""

    def load(self, run: str) -> None:
        """None."""

    def save(self, run: str, number: int, parts: Iterable[dict[str, Tensor]]) -> None:
        """Does nothing."""


SAVING_SHARE = 0.05
"""Of the time of a training, at most, for saving its states: large ones are saved less often."""


@dataclass(frozen=True)
class Checkpointing:
    """Where runs keep their states, and how many seconds of training lie between two of these, at least."""

    checkpoints: Checkpoints
    seconds: float

    def pause(self, took: float) -> float:
        """Seconds to train on before the next state, after one that took so long to save; 0: none was saved yet."""
        return max(self.seconds, took * (1 - SAVING_SHARE) / SAVING_SHARE)


NO_CHECKPOINTING = Checkpointing(NoCheckpoints(), float("inf"))
