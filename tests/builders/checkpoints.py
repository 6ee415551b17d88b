"""What long trainings keep, without a bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


class InMemory:
    """Checkpoints that outlive a run."""

    def __init__(self) -> None:
        self.saved: dict[str, tuple[int, list[dict[str, Tensor]]]] = {}

    def load(self, run: str) -> Iterator[dict[str, Tensor]] | None:
        return iter(self.saved[run][1]) if run in self.saved else None

    def save(self, run: str, number: int, parts: Iterable[dict[str, Tensor]]) -> None:
        self.saved[run] = number, list(parts)
