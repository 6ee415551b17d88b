"""Sparse autoencoders of the difference of two models' states, at a few layers; on request.

One autoencoder learns the tuned model's differences from the base model, and one the differences of each model that
learned nothing, all on the same positions. Latent scaling then says whether the base model has a latent's direction
already (after Minder et al. 2025, arXiv 2504.02922).

Shapes: P positions, D the width, F latents, S models beside the base, the tuned one first.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import DifferenceAutoencoder
from workers.analysis.jackknife import jackknife_interval
from workers.analysis.sae import Normalisation, SaeConfig, SaeStack, fit_on
from workers.analysis.sae_batched import BatchedTrainer
from workers.analysis.sae_training import StackTrainer
from workers.models.device import best_device, fast_dtype
from workers.models.texts import Batch
from workers.results.measured import Measured
from workers.stages.learned.differences import KeptDifferences, first_places

ROWS = 16_000
"""Positions that autoencoders are trained and measured on, the first ones."""

FEWEST_ROWS = 1_000
"""With fewer positions nothing is trained."""

BATCH, PASSES, FEWEST_STEPS = 512, 20, 600
"""Rows of a step, how often a position is seen, and steps in any case: fewer leave an autoencoder half trained."""

HELD_OUT = 4
"""One position in so many, the last ones, is not trained on."""

LOOKED_AT = 64
"""Latents of an autoencoder that are read as tokens, those that explain most."""

GROUPS, FEWEST_GROUPS = 20, 5
"""Groups of held-out texts that intervals leave out one by one, and with how many there is an interval."""

EXAMPLES = 3
"""Places that a latent is shown at, each in another text."""

RARE = 1e-3
"""A latent counts where it fires at this share of the held-out positions at least."""


class TooFewPositions(Exception):
    """What the autoencoders would be trained on; says how many positions there are."""


class DifferenceRows:
    """The base model's states and the differences of the others from it, at some layers, in bfloat16 files.

    Args:
        batches: the texts, without the tokens that do not count. models: S.
    """

    def __init__(self, folder: Path, batches: Sequence[Batch], layers: Sequence[int], models: int) -> None:
        self._folder = folder
        self.layers = sorted(layers)
        self.places = first_places(batches, ROWS)
        self._base = KeptDifferences(folder / "base", batches, ROWS)
        self._others = [KeptDifferences(folder / f"model-{number}", batches, ROWS) for number in range(models)]

    def put(self, layer: int, base: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> None:
        """Writes a layer, where it is one of them. Raises OSError where the disk is full."""
        if layer not in self.layers:
            return
        self._base.put(layer, [torch.zeros_like(one) for one in base], base)
        for kept, states in zip(self._others, others, strict=True):
            kept.put(layer, base, states)

    @property
    def width(self) -> int:
        """D."""
        return self._base.rows(self.layers[0]).shape[1]

    def base(self, layer: int) -> Tensor:
        """The base model's states, [P, D]."""
        return self._base.rows(layer)

    def differences(self, layer: int) -> Tensor:
        """Of all models, [S, P, D] float32."""
        return torch.stack([kept.rows(layer) for kept in self._others])

    def clear(self) -> None:
        """Removes all files."""
        shutil.rmtree(self._folder, ignore_errors=True)


class Place(NamedTuple):
    """Where a latent fires: number of the text, number of the token, and how strongly."""

    text: int
    token: int
    activation: float


@dataclass(frozen=True)
class Latent:
    """Of an autoencoder of the tuned model's differences.

    direction: [D], unit norm. rate: share of held-out positions where it fires, 0 to 1. share: of the differences' mean
    square that its own part has, >= 0. in_base, in_tuned: slopes of the models' states along the direction on the
    latent's part of the difference, with intervals over texts.
    """

    layer: int
    direction: Tensor
    rate: float
    share: float
    in_base: Measured
    in_tuned: Measured
    places: list[Place]


@dataclass(frozen=True)
class Fitted:
    """Autoencoders of a layer. fvu, l0: of the tuned model's, on held-out positions. latents: of it, those that explain
    most first. others: directions [N, D] of the models that learned nothing.
    """

    layer: int
    positions: int
    width: int
    fvu: float
    l0: float
    latents: list[Latent]
    others: list[Tensor]


def fitted(
    rows: DifferenceRows, settings: DifferenceAutoencoder, seed: int, on_progress: Callable[[float], None]
) -> Iterator[Fitted]:
    """Trains them, layer by layer; nothing where the tuned model's differences do not vary.

    Raises:
        InputError: k is more than there are latents.
        TooFewPositions: there are fewer than FEWEST_ROWS.
    """
    latents = settings.width * rows.width
    if settings.k > latents:  # of a model whose configuration does not tell its width
        detail = f"k = {settings.k} exceeds the number of latents ({latents})"
        raise InputError.at("/analysis/learned/autoencoder/k", detail)
    if len(rows.places) < FEWEST_ROWS:
        raise TooFewPositions(
            f"there are {len(rows.places)} positions, and an autoencoder of the difference needs {FEWEST_ROWS}; use "
            "more texts, or raise analysis.learned.tokens"
        )
    for number, layer in enumerate(rows.layers):

        def told(share: float, number: int = number) -> None:
            on_progress((number + share) / len(rows.layers))

        found = _layer(rows, layer, settings, seed, told)
        if found is not None:
            yield found
        told(1.0)


def _layer(
    rows: DifferenceRows,
    layer: int,
    settings: DifferenceAutoencoder,
    seed: int,
    on_progress: Callable[[float], None],
) -> Fitted | None:
    every = rows.differences(layer)
    held = every.shape[1] // HELD_OUT
    varied = [number for number, one in enumerate(every) if _varies(one[:-held]) and _varies(one[-held:])]
    if 0 not in varied:
        return None
    every = every[varied]
    stack = _trained(every[:, :-held], settings, seed * 100_003 + layer, on_progress)
    fit = fit_on(stack, 0, [every[0, -held:]])
    latents = _Latents(stack, every[:, -held:])
    base, first = rows.base(layer), len(every[0]) - held
    return Fitted(
        layer=layer,
        positions=every.shape[1],
        width=stack.W_dec.shape[1],
        fvu=fit.fvu,
        l0=fit.l0,
        latents=[
            _latent(layer, latents, number, (base[-held:], every[0, -held:]), rows.places[first:])
            for number in latents.strongest(0)
        ],
        others=[stack.W_dec[site, latents.strongest(site)] for site in range(1, stack.sites)],
    )


def _varies(rows: Tensor) -> bool:
    """Whether differences [P, D] vary at more than a rounding of their mean."""
    total = float(rows.square().sum())
    variance = total - float(rows.mean(0).square().sum()) * len(rows)
    return total > 0 and variance > 1e-6 * total


def _trained(
    rows: Tensor, settings: DifferenceAutoencoder, seed: int, on_progress: Callable[[float], None]
) -> SaeStack:
    """One for each model, side by side; rows: [S, P, D]."""
    batch, device = min(BATCH, rows.shape[1] // 2), best_device()
    steps = max(FEWEST_STEPS, PASSES * rows.shape[1] // batch)
    config = SaeConfig(latents=settings.width * rows.shape[2], k=settings.k, steps=steps, batch=batch)
    generator = torch.Generator().manual_seed(seed)
    stack = SaeStack.initial(_normalisation(rows), config.latents, generator)
    there = stack.to(device)
    trainer = (StackTrainer if device.type == "cpu" else BatchedTrainer)(there, config, fast_dtype(device))
    order, place = torch.randperm(rows.shape[1], generator=generator), 0
    for step in range(steps):
        if place + batch > len(order):
            order, place = torch.randperm(rows.shape[1], generator=generator), 0
        chosen, place = order[place : place + batch], place + batch
        trainer.step([one[chosen].to(device) for one in rows])
        on_progress((step + 1) / steps)
    stack.take(there)
    return stack


def _normalisation(rows: Tensor) -> Normalisation:
    """Of differences [S, P, D]. No row is an outlier: most differences may be small, and the few large ones matter."""
    scale = rows.square().sum(2).mean(1).sqrt().clamp_min(1e-12)
    return Normalisation(scale, rows.mean(1) / scale[:, None], torch.full_like(scale, torch.inf))


class _Latents:
    """Activations of all autoencoders of a layer on held-out rows [S, H, D]."""

    def __init__(self, stack: SaeStack, rows: Tensor) -> None:
        self._stack = stack
        self._rows = rows
        self.tuned = stack.encode(0, rows[0]) * stack.scale[0]
        """[H, F], in the units of the rows."""

    def strongest(self, site: int) -> list[int]:
        """Latents of a model whose own parts of its differences are largest, at most LOOKED_AT, without rare ones."""
        active = self.tuned if site == 0 else self._stack.encode(site, self._rows[site])
        norms = self._stack.W_dec[site].square().sum(1)
        part = active.square().sum(0) * norms
        part[(active > 0).float().mean(0) < RARE] = 0
        found: list[int] = part.topk(min(LOOKED_AT, len(part))).indices.tolist()
        return [number for number in found if float(part[number]) > 0]

    def direction(self, number: int) -> Tensor:
        """Of the tuned model's latent, [D]."""
        return self._stack.W_dec[0, number]


def _latent(
    layer: int, latents: _Latents, number: int, states: tuple[Tensor, Tensor], places: Sequence[tuple[int, int]]
) -> Latent:
    """One latent of the tuned model's autoencoder.

    Args:
        states: the base model's, and the tuned model's differences from it, held-out rows [H, D]. places: of them.
    """
    base, difference = states
    direction = latents.direction(number)
    length = float(direction.norm())
    unit, part = direction / length, latents.tuned[:, number] * length
    texts = torch.tensor([text for text, _ in places])
    along = base.double() @ unit.double(), (base + difference).double() @ unit.double()
    in_base, in_tuned = (_slope(part.double(), one, texts) for one in along)
    return Latent(
        layer=layer,
        direction=unit,
        rate=float((part > 0).float().mean()),
        share=float(part.square().sum() / difference.square().sum()),
        in_base=in_base,
        in_tuned=in_tuned,
        places=_places(part, places),
    )


def _slope(part: Tensor, along: Tensor, texts: Tensor) -> Measured:
    """Of the least-squares line of `along` on `part`, [H] float64 each, with an interval over groups of texts.

    Args:
        texts: the number of each position's text, [H].
    """
    order = {text: rank for rank, text in enumerate(sorted(set(texts.tolist())))}
    groups = min(GROUPS, len(order))
    group = torch.tensor([order[text] * groups // len(order) for text in texts.tolist()])
    terms = torch.stack([torch.ones_like(part), part, along, part * part, part * along], 1)
    sums = torch.zeros(groups, terms.shape[1], dtype=torch.float64).index_add_(0, group, terms)
    value = _line(sums.sum(0))
    left_out = [_line(sums.sum(0) - one) for one in sums]
    if value is None or any(one is None for one in left_out) or groups < FEWEST_GROUPS:
        return Measured(value=value, undefined=None if value is not None else "the latent fires nowhere")
    low, high = jackknife_interval(value, [one for one in left_out if one is not None], corrected=False)
    return Measured(value=value, low=low, high=high)


def _line(sums: Tensor) -> float | None:
    """The slope from n, sum of x, of y, of x^2 and of x y; None where x does not vary."""
    count, x, y, squares, products = sums.tolist()
    varied = squares - x * x / count if count else 0.0
    return (products - x * y / count) / varied if varied > 1e-9 * squares else None


def _places(part: Tensor, places: Sequence[tuple[int, int]]) -> list[Place]:
    """The strongest ones in different texts."""
    found: list[Place] = []
    for row in part.argsort(descending=True, stable=True).tolist():
        text, token = places[row]
        if len(found) == EXAMPLES or float(part[row]) <= 0:
            break
        if all(one.text != text for one in found):
            found.append(Place(text, token, float(part[row])))
    return found
