"""How a stage says how far it has come."""

from __future__ import annotations

from typing import Protocol


class Tick(Protocol):
    """Called between batches; raises when the job is to stop."""

    def __call__(self, fraction: float, detail: str = "") -> None:
        """`fraction` of the stage is done, 0 to 1; `detail` is for people."""
