"""What long trainings keep, without a bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor


class InMemory:
    """Checkpoints that outlive a run."""

    def __init__(self) -> None:
        self.saved: dict[str, tuple[int, list[dict[str, Tensor]]]] = {}

    def load(self, run: str) -> Iterator[dict[str, Tensor]] | None:
        return iter(self.saved[run][1]) if run in self.saved else None

    def save(self, run: str, number: int, parts: Iterable[dict[str, Tensor]]) -> None:
        self.saved[run] = number, list(parts)


class KeptTrainings:
    """Finished trainings that outlive an analysis."""

    def __init__(self) -> None:
        self.trainings: dict[str, list[dict[str, Tensor]]] = {}
        self.found: list[str] = []

    def find(self, name: str) -> list[dict[str, Tensor]] | None:
        if name in self.trainings:
            self.found.append(name)
        return self.trainings.get(name)

    def keep(self, name: str, parts: Sequence[dict[str, Tensor]]) -> None:
        self.trainings[name] = [{name: tensor.clone() for name, tensor in part.items()} for part in parts]
