"""Differences of a changed model's states from the base model's: their means, and those of single positions by layer.

Shapes: L + 1 layers, P positions that are kept, D the width.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from workers.models.texts import Batch

EARLY = 5
"""Tokens at the start of a text whose mean difference is looked at by itself, as in the activation difference lens."""

KEPT_ROWS = 4_000
"""Positions of which all layers' differences wait on disk, the first ones."""

COMPONENTS = 4
"""Principal components that are looked at."""


@dataclass(frozen=True)
class Differences:
    """Mean differences from the base model's states by layer, [L + 1, D] each: over all tokens that count, and over the
    first EARLY of each text, its very first apart.
    """

    every: Tensor
    early: Tensor


HALVES = 4
"""Random halves of the texts between which the base model's means are compared: what other texts alone bring about."""


def _early(real: Tensor) -> Tensor:
    """Of the tokens that count [B, T], those among the first EARLY of a text, its very first apart."""
    places = torch.arange(real.shape[1])
    return real & (places < EARLY + 1) & (places > 0)


class DifferenceSums:
    """Of the differences of a model's states from the base model's."""

    def __init__(self, layers: int, width: int) -> None:
        self._every, self._early = torch.zeros(2, layers, width, dtype=torch.float64)
        self._counts = torch.zeros(2, layers, dtype=torch.float64)

    def add(self, layer: int, base: Sequence[Tensor], states: Sequence[Tensor], batches: Sequence[Batch]) -> None:
        """Takes the states of all batches at a layer, [B, T, D] each."""
        for one, other, batch in zip(base, states, batches, strict=True):
            difference = (other.float() - one.float()).cpu()
            real = batch.real
            for sums, counts, chosen in (
                (self._every, self._counts[0], real),
                (self._early, self._counts[1], _early(real)),
            ):
                sums[layer] += difference[chosen].sum(0, dtype=torch.float64)
                counts[layer] += int(chosen.sum())

    def mean(self, layer: int) -> Tensor:
        """Over all tokens that count, at a layer that was added, [D]."""
        found: Tensor = self._every[layer] / self._counts[0][layer].clamp_min(1)
        return found

    def means(self) -> Differences:
        """By layer."""
        every, early = (
            (sums / counts.clamp_min(1)[:, None]).float()
            for sums, counts in zip((self._every, self._early), self._counts, strict=True)
        )
        return Differences(every, early)


class HalfMeans:
    """Differences of a model's mean states between random halves of the texts, HALVES times.

    Args:
        layers: L + 1, of which some may be added. seed: of the halves.
    """

    def __init__(self, layers: int, width: int, seed: int) -> None:
        self._sums = torch.zeros(HALVES, 2, 2, layers, width, dtype=torch.float64)
        self._counts = torch.zeros(HALVES, 2, 2, layers, dtype=torch.float64)
        self._seed = seed

    def add(self, layer: int, states: Sequence[Tensor], batches: Sequence[Batch]) -> None:
        """Takes the states of all batches at a layer, [B, T, D] each."""
        texts = 1 + max(index for batch in batches for index in batch.indices)
        generator = torch.Generator().manual_seed(self._seed)
        sides = torch.stack([torch.randperm(texts, generator=generator) % 2 for _ in range(HALVES)])
        for one, batch in zip(states, batches, strict=True):
            own = one.float().cpu().double()
            for kind, chosen in enumerate((batch.real, _early(batch.real))):
                sums, counts = (own * chosen[:, :, None]).sum(1), chosen.sum(1).double()
                for half in range(HALVES):
                    side = sides[half, batch.indices]
                    self._sums[half, kind, :, layer].index_add_(0, side, sums)
                    self._counts[half, kind, :, layer].index_add_(0, side, counts)

    def means(self) -> list[Differences]:
        """Of each pair of halves; 0 at layers that were not added, and where a half has no token."""
        means = self._sums / self._counts.clamp_min(1)[..., None]
        both = (self._counts > 0).all(2)
        found = torch.where(both[..., None], means[:, :, 0] - means[:, :, 1], 0.0).float()
        return [Differences(every, early) for every, early in found]


@dataclass(frozen=True)
class Components:
    """Principal components of the differences at a layer. directions: [C, D], unit norm, the largest first.

    shares: of the variance that each holds, 0 to 1. mean_share: of the mean square that is the mean's, 0 to 1.
    """

    directions: Tensor
    shares: list[float]
    mean_share: float


def first_places(batches: Sequence[Batch], most: int) -> list[tuple[int, int]]:
    """Numbers of the text and of the token of the first positions that count."""
    every = ((batch.indices[row], token) for batch in batches for row, token in batch.real.nonzero().tolist())
    return list(islice(every, most))


class KeptDifferences:
    """The differences at the first positions that count, a file for each layer, in bfloat16.

    Args:
        batches: the texts, without the tokens that do not count. most: positions.
    """

    def __init__(self, folder: Path, batches: Sequence[Batch], most: int = KEPT_ROWS) -> None:
        self._folder = folder
        self._batches = batches
        self._rows = {place: number for number, place in enumerate(first_places(batches, most))}

    def put(self, layer: int, base: Sequence[Tensor], states: Sequence[Tensor]) -> None:
        """Writes a layer. Raises OSError where the disk is full."""
        found, missing = list[Tensor](), len(self._rows)
        for one, other, batch in zip(base, states, self._batches, strict=True):
            if missing <= 0:
                break
            real = batch.real.to(one.device)
            found.append((other[real].float() - one[real].float())[:missing].bfloat16().cpu())
            missing -= len(found[-1])
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(torch.cat(found), self._path(layer))
        except RuntimeError as error:  # how torch tells it
            raise OSError(f"the differences at layer {layer} could not be written: {error}") from error

    def rows(self, layer: int) -> Tensor:
        """All positions at a layer that was written, [P, D] float32."""
        found: Tensor = torch.load(self._path(layer), weights_only=True)
        return found.float()

    def place(self, text: int, token: int) -> int | None:
        """The row of a token of a text; None where it is not kept."""
        return self._rows.get((text, token))

    def components(self, layer: int) -> Components:
        """The first COMPONENTS of a layer."""
        rows = self.rows(layer)
        mean = rows.mean(0)
        total = float(rows.square().sum()) / len(rows)
        variance = total - float(mean.square().sum())
        count = min(COMPONENTS, *rows.shape)
        if variance <= 1e-6 * total or total == 0:
            return Components(rows.new_zeros(count, rows.shape[1]), [0.0] * count, 1.0 if total else 0.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, values, directions = torch.svd_lowrank(rows - mean, q=min(4 * COMPONENTS, *rows.shape), niter=4)
        shares = (values.square() / (len(rows) * variance)).clamp(0.0, 1.0)[:count].tolist()
        return Components(directions.T[:count], shares, min(1.0, float(mean.square().sum()) / total))

    def clear(self) -> None:
        """Removes all files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, layer: int) -> Path:
        return self._folder / f"{layer:04d}.pt"
