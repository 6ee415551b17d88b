"""Loss of many trainings side by side, in spans of steps; and whether all of them have stopped getting better."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SPANS = 100
"""Into so many spans a run is divided."""

WINDOW_SPANS, MIN_WINDOW_STEPS = 10, 100
"""Two neighbouring windows are compared, each of a tenth of the run, or of so many steps where that is more."""

LEAST_GAIN = 0.01
"""A loss that fell by a smaller share than this from one window to the next has stopped falling."""


class LossCurve:
    """Mean losses of S trainings over spans of a run's steps.

    Args:
        steps: that the run was planned for.
        trainings: S.
    """

    def __init__(self, steps: int, trainings: int) -> None:
        self.span = math.ceil(steps / SPANS)
        self.means: list[Tensor] = []
        self._window = max(WINDOW_SPANS, math.ceil(MIN_WINDOW_STEPS / self.span))
        self._sum = torch.zeros(trainings)
        self._count = 0

    def add(self, losses: Tensor) -> None:
        """Adds one step's losses [S], on any device: they come to the CPU at the end of a span."""
        self._sum = self._sum.to(losses.device) + losses
        self._count += 1
        if self._count == self.span:
            self.means.append((self._sum / self.span).cpu())
            self._sum, self._count = torch.zeros_like(self._sum), 0

    @property
    def flat(self) -> bool:
        """Whether a window has just ended in which no training's loss fell by LEAST_GAIN or more."""
        if self._count or len(self.means) % self._window or len(self.means) < 2 * self._window:
            return False
        windows = torch.stack(self.means[-2 * self._window :]).reshape(2, self._window, -1).mean(1)
        return bool((windows[1] > (1 - LEAST_GAIN) * windows[0]).all())

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on."""
        means = torch.stack(self.means) if self.means else torch.zeros(0, len(self._sum))
        return {"loss_means": means, "loss_sum": self._sum.cpu().clone(), "loss_count": torch.tensor(self._count)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from a state of a run of the same plan."""
        self.means = list(state["loss_means"])
        self._sum, self._count = state["loss_sum"].clone(), int(state["loss_count"])
