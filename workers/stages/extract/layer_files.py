"""The states of all layers on disk, until it is known which tokens count in every one of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from workers.stages.extract.layer_walk import LayerStates
from workers.stages.extract.merged_batches import Layout, Regrouped


class LayerFiles:
    """One file for each layer, in the states' own precision.

    Args:
        folder: is made, and removed with all layers. room_bytes: what the files may take together.
        layers: how many will come, L + 1.
    """

    def __init__(self, folder: Path, room_bytes: float, layers: int) -> None:
        self._folder = folder
        self._room = room_bytes
        self._layers = layers
        self._kept: list[Path] = []
        self._layouts: dict[str, Layout] = {}
        self._all_fit: bool | None = None

    def put(self, standing: LayerStates) -> bool:
        """Writes a layer, and says whether it did: all of them where the first one shows that all have room, or none.

        Layers come in order. Raises OSError where the disk is full after all.
        """
        if self._all_fit is None:
            self._all_fit = self._fits(standing)
        if self._all_fit:
            self._write(standing)
        return self._all_fit

    def _fits(self, standing: LayerStates) -> bool:
        sizes = [sum(state.nbytes for state in states) for states in self._tensors(standing).values()]
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._layers * sum(sizes) <= min(self._room, shutil.disk_usage(self._folder).free / 2)

    def _write(self, standing: LayerStates) -> None:
        path = self._folder / f"{standing.layer:04d}.pt"
        try:
            torch.save(vars(standing) | self._tensors(standing), path)
        except RuntimeError as error:  # how torch tells it; a model that does not run block by block raises the same
            raise OSError(f"the states of layer {standing.layer} could not be written: {error}") from error
        self._kept.append(path)

    def each(self) -> Iterator[LayerStates]:
        """All layers, in the processor's memory; a file is gone once its layer was read."""
        for path in self._kept:
            found = torch.load(path, weights_only=True)
            for name, layout in self._layouts.items():
                if not isinstance(found[name], str):
                    found[name] = Regrouped(found[name], layout)
            yield LayerStates(**found)
            path.unlink()

    def clear(self) -> None:
        """Removes all files."""
        self._kept = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tensors(self, standing: LayerStates) -> dict[str, list[Tensor]]:
        """The states by their name, in the processor's memory, as they were read; without those that are not there."""
        found: dict[str, list[Tensor]] = {}
        for name, states in vars(standing).items():
            if isinstance(states, Regrouped):
                self._layouts[name] = states.layout
                found[name] = [state.cpu() for state in states.states]
            elif isinstance(states, list):
                found[name] = [state.cpu() for state in states]
        return found
