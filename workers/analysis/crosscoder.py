"""Crosscoders: one latent space for the activations of two models at a layer, and a decoder for each.

A crosscoder is trained as an autoencoder of the two models' rows side by side, [N, 2 D], each divided by its own scale;
`workers.analysis.sae` and its trainer see nothing special in it. Here is what its latents say of the pair. After Minder
et al. 2025 (arXiv 2504.02922), who keep the latents with the largest activation times the sum of both decoder norms;
here a latent's two decoder rows have norm 1 together, and its activation alone decides.

Shapes: B rows, D width of one model, F latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workers.analysis.matching import ALIVE_SHARE
from workers.analysis.sae import SaeStack

ONLY_SHARE = 0.1
"""A latent is of one model only when its relative norm lies within this of that model's end."""

SHARED_SHARES = (0.4, 0.6)
"""Relative norms of a latent that both models share alike."""

MOST_IN_ERROR, MOST_IN_RECONSTRUCTION = 0.2, 0.5
"""How much of a latent of one model only the other one may have, in its error and in its reconstruction."""


class Scaling(NamedTuple):
    """How much of each latent the other model has, as shares of what its own has; [F], NaN where nothing says.

    Its own model is the one whose decoder row is longer. in_error: what the other model's reconstruction misses; near 1
    the latent is there and was not learnt (complete shrinkage). in_reconstruction: what other latents rebuild of it;
    near 1 they do its work there (latent decoupling). May be negative, and above 1.
    """

    in_error: Tensor
    in_reconstruction: Tensor


@dataclass(frozen=True)
class CrosscoderFit:
    """Of one crosscoder on rows that it was not trained on.

    base_fvu, tuned_fvu: fraction of each model's variance unexplained, >= 0. l0: active latents for a token, mean.
    firing_rates: [F]. relative_norms: [F], 0: only the base model's decoder has the latent, 1: only the tuned one's.
    """

    base_fvu: float
    tuned_fvu: float
    l0: float
    firing_rates: Tensor
    relative_norms: Tensor
    scaling: Scaling

    @property
    def alive(self) -> Tensor:
        """Latents that fire at least ALIVE_SHARE as often as the mean one; [F] bool."""
        alive: Tensor = (self.firing_rates > 0) & (self.firing_rates >= ALIVE_SHARE * self.firing_rates.mean())
        return alive

    @property
    def confirmed(self) -> Tensor:
        """Latents that the model with the shorter decoder row does not have otherwise either; [F] bool."""
        scaling = self.scaling
        found: Tensor = (scaling.in_error < MOST_IN_ERROR) & (scaling.in_reconstruction < MOST_IN_RECONSTRUCTION)
        return found


def side_by_side(base: Tensor, tuned: Tensor, scales: tuple[Tensor, Tensor]) -> Tensor:
    """Rows of both models at the same tokens as a crosscoder sees them; [B, D] each -> [B, 2 D] float32."""
    return torch.cat([base.float() / scales[0], tuned.float() / scales[1]], dim=1)


def relative_norms(W_dec: Tensor) -> Tensor:
    """(1 + (|d_tuned| - |d_base|) / max(|d_tuned|, |d_base|)) / 2 of decoder rows [F, 2 D]; [F], 0 to 1."""
    base, tuned = (half.norm(dim=1) for half in W_dec.chunk(2, dim=1))
    found: Tensor = (1 + (tuned - base) / torch.maximum(base, tuned).clamp_min(1e-12)) / 2
    return found


class _Sums:
    """What is added up over batches of one model's rows."""

    def __init__(self, latents: int, width: int) -> None:
        self.residual = self.square = 0.0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.error_dots, self.rebuilt_dots = torch.zeros(2, latents, dtype=torch.float64)

    def add(self, rows: Tensor, rebuilt: Tensor, latents: Tensor, directions: Tensor) -> None:
        error = rows - rebuilt
        self.residual += float(error.double().square().sum())
        self.square += float(rows.double().square().sum())
        self.total += rows.double().sum(0)
        self.error_dots += ((latents.T @ error) * directions).sum(1)
        self.rebuilt_dots += ((latents.T @ rebuilt) * directions).sum(1)

    def fvu(self, count: int) -> float:
        variance = self.square - float(self.total.square().sum()) / count if count else 0.0
        if variance <= 1e-10 * self.square or not count:
            raise ValueError(f"the {count} rows have no variance, so FVU is undefined")
        return self.residual / variance


def crosscoder_fit(stack: SaeStack, site: int, batches: Iterable[Tensor]) -> CrosscoderFit:
    """Measures one crosscoder over batches of rows side by side [B, 2 D], unscaled by `stack`.

    How strongly latent j is in some vectors y is the least-squares factor b of y ~ b f_j d_j, where f_j is its
    activation and d_j its own model's decoder row: b = sum f_j <y, d_j> / (|d_j|^2 sum f_j^2). For the error of a model
    the latent's own part of its reconstruction is left in y.

    Raises:
        ValueError: the rows of a model do not vary, or there are none.
    """
    W_dec = stack.W_dec[site]
    halves = W_dec.chunk(2, dim=1)
    norms = relative_norms(W_dec)
    of_tuned = (norms >= 0.5)[:, None]
    own = torch.where(of_tuned, halves[1], halves[0])
    sums = [_Sums(*half.shape) for half in halves]
    squares, active = torch.zeros(2, len(W_dec), dtype=torch.float64)
    count = 0
    for rows in batches:
        latents = stack.encode(site, rows)
        both = zip(rows.chunk(2, dim=1), stack.decode(site, latents).chunk(2, dim=1), strict=True)
        for side, (given, rebuilt) in zip(sums, both, strict=True):
            side.add(given, rebuilt, latents * stack.scale[site], own)
        squares += (latents * stack.scale[site]).double().square().sum(0)
        active += (latents > 0).sum(0)
        count += len(rows)
    own_squares = own.double().square().sum(1)
    weight = own_squares * squares
    in_error = [
        side.error_dots / weight + (half * own).sum(1) / own_squares for side, half in zip(sums, halves, strict=True)
    ]
    in_rebuilt = [side.rebuilt_dots / weight for side in sums]
    return CrosscoderFit(
        base_fvu=sums[0].fvu(count),
        tuned_fvu=sums[1].fvu(count),
        l0=float(active.sum()) / count,
        firing_rates=active / count,
        relative_norms=norms,
        scaling=Scaling(
            *(_of_other(in_base, in_tuned, of_tuned[:, 0]) for in_base, in_tuned in (in_error, in_rebuilt))
        ),
    )


def _of_other(in_base: Tensor, in_tuned: Tensor, of_tuned: Tensor) -> Tensor:
    """How much the other model has as a share of what the latent's own has; NaN where its own has nothing of it."""
    other, own = torch.where(of_tuned, in_base, in_tuned), torch.where(of_tuned, in_tuned, in_base)
    return torch.where(own > 0, other / own, torch.nan)


class SpecificLatents(NamedTuple):
    """Living latents by the model that has them; [F] bool each. Confirmed: the other has them in no other way."""

    tuned_only: Tensor
    tuned_more: Tensor
    shared: Tensor
    base_more: Tensor
    base_only: Tensor
    tuned_only_confirmed: Tensor
    base_only_confirmed: Tensor


def specific_latents(fit: CrosscoderFit) -> SpecificLatents:
    """Sorts them by relative norm, and confirms those of one model by latent scaling."""
    norms, alive = fit.relative_norms, fit.alive
    tuned, base = norms >= 1 - ONLY_SHARE, norms <= ONLY_SHARE
    more, less = norms > SHARED_SHARES[1], norms < SHARED_SHARES[0]
    sorted_ones = tuned, more & ~tuned, ~more & ~less, less & ~base, base, tuned & fit.confirmed, base & fit.confirmed
    return SpecificLatents(*(alive & some for some in sorted_ones))
