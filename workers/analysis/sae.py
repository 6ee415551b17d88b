"""Sparse autoencoders of four architectures, many side by side: what they are, how they are trained, how they fit.

`workers.analysis.sae_training` trains them.

Shapes: S autoencoders (sites), B rows (tokens), D input width, F latents, K = the B*k pairs of row and latent kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DEAD_SHARE = 0.05
"""A latent is dead when it has not fired for this share of the run's tokens."""

WARMUP_SHARE, DECAY_SHARE, MAX_WARMUP_STEPS = 0.05, 0.2, 1000
MAX_THRESHOLD_MEMORY = 0.999
MIN_BATCH = 16
OUTLIER_FACTOR = 10.0

ENCODER_START = 0.3
"""Norm of the encoder's rows at the start, where the decoder's are 1: a step of Adam turns short rows further."""


Architecture = Literal["batch_topk", "topk", "jumprelu", "relu_l1"]
"""Which latents of a row are active.

batch_topk: the k B largest of a batch of B rows; a threshold at inference (Bussmann et al. 2024, arXiv 2412.06410).
topk: the k largest of the row (Gao et al. 2024, arXiv 2406.04093).
jumprelu: those above a threshold of their own, which is learnt (Rajamanoharan et al. 2024, arXiv 2407.14435).
relu_l1: all positive ones, under an L1 penalty (Bricken et al. 2023).
"""


@dataclass(frozen=True)
class SaeConfig:
    """How a stack is trained.

    latents: F. k: latents active for a row, on average; of the penalised architectures (jumprelu, relu_l1), what their
    penalty is steered to. steps: optimiser steps. batch: rows in a step.
    """

    latents: int
    k: int
    steps: int
    batch: int = 2048
    architecture: Architecture = "batch_topk"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.latents:
            raise ValueError(f"k must be between 1 and the number of latents ({self.latents}); it is {self.k}")
        if self.steps < 1 or self.batch < MIN_BATCH:
            raise ValueError(f"steps must be at least 1 and batch at least {MIN_BATCH}")

    @property
    def learning_rate(self) -> float:
        """Peak rate: 3e-3 up to 250 steps, then falling with the root of the steps to 2e-4 / sqrt(F / 2^14).

        The floor is the usual rule for long runs (Gao et al. 2024). A run of a few hundred steps would stop far from
        its optimum at that rate: see docs/decisions/0003-sae-learning-rate.md.
        """
        floor = 2e-4 / math.sqrt(self.latents / 2**14)
        return max(floor, 3e-3 * math.sqrt(250 / max(self.steps, 250)))

    def rate_at(self, step: int, end: int | None = None) -> float:
        """The learning rate of a step, 0-based: linear warm-up, flat, linear decay over the last fifth.

        Args:
            end: how many steps there will be, where it is fewer than planned.
        """
        warmup = max(1, min(MAX_WARMUP_STEPS, round(WARMUP_SHARE * self.steps)))
        end = end or self.steps
        remaining = (end - step) / max(1.0, DECAY_SHARE * end)
        return self.learning_rate * min(1.0, (step + 1) / warmup, remaining)

    @property
    def dead_after(self) -> float:
        """Tokens without firing after which a latent is dead."""
        return DEAD_SHARE * self.steps * self.batch

    @property
    def threshold_memory(self) -> float:
        """Decay of the threshold's moving average: its window is a twentieth of a short run, 1,000 steps at most."""
        return min(MAX_THRESHOLD_MEMORY, 1 - 1 / max(1.0, 0.05 * self.steps))


class Normalisation(NamedTuple):
    """What a stack's inputs are divided by and centred at; [S], [S, D], [S].

    scale: root of the mean squared norm of a site's rows, so that scaled rows have mean squared norm 1.
    mean: of the scaled rows, the start of b_dec. norm_limit: rows beyond this norm, before scaling, are outliers.
    """

    scale: Tensor
    mean: Tensor
    norm_limit: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Normalisation:
        """From a sample of rows [S, N, D]; outliers beyond OUTLIER_FACTOR medians do not count."""
        return cls(*map(torch.stack, zip(*map(_normalisation_of_site, rows), strict=True)))

    def of_sites(self, sites: list[int]) -> Normalisation:
        """Of some of the sites."""
        return Normalisation(*(tensor[sites] for tensor in self))


def _normalisation_of_site(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, mean of the scaled rows, and largest usual norm of one site's rows [N, D]."""
    rows = rows.float()
    norms = rows.norm(dim=-1)
    limit = OUTLIER_FACTOR * norms.median()
    inliers = norms <= limit
    scale = norms[inliers].square().mean().sqrt().clamp_min(1e-12)
    return scale, rows[inliers].mean(0) / scale, limit


@dataclass
class SaeStack:
    """S autoencoders. Inputs are divided by `scale` first; a row of W_enc or W_dec belongs to one latent.

    W_enc, W_dec: [S, F, D]; b_enc, threshold: [S, F]; b_dec: [S, D]; scale, norm_limit: [S]. All float32. At inference
    a latent fires when its pre-activation is above its threshold, in scaled units; or, where `row_k` is not 0, when it
    is positive and among the row's `row_k` largest.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    scale: Tensor
    norm_limit: Tensor
    threshold: Tensor
    row_k: int = 0

    @classmethod
    def initial(
        cls, normalisation: Normalisation, latents: int, generator: torch.Generator, row_k: int = 0
    ) -> SaeStack:
        """Random unit decoder rows, the same for every site; the encoder is their transpose, scaled, b_dec the mean.

        See docs/decisions/0003-sae-learning-rate.md for the scale.
        """
        sites, width = normalisation.mean.shape
        rows = torch.randn(latents, width, generator=generator)
        rows = (rows / rows.norm(dim=1, keepdim=True)).expand(sites, -1, -1)
        return cls(
            W_enc=rows * ENCODER_START,
            W_dec=rows.clone(),
            b_enc=torch.zeros(sites, latents),
            b_dec=normalisation.mean.clone(),
            scale=normalisation.scale.clone(),
            norm_limit=normalisation.norm_limit.clone(),
            threshold=torch.zeros(sites, latents),
            row_k=row_k,
        )

    @property
    def sites(self) -> int:
        """S."""
        return self.W_enc.shape[0]

    def of_sites(self, sites: list[int]) -> SaeStack:
        """Some of the autoencoders, or one of them several times, in memory of their own."""
        return SaeStack(**{name: tensor[sites] for name, tensor in self.tensors().items()}, row_k=self.row_k)

    def neighbours(self, start: int, end: int) -> SaeStack:
        """The autoencoders from `start` up to `end`, in the same memory."""
        return SaeStack(**{name: tensor[start:end] for name, tensor in self.tensors().items()}, row_k=self.row_k)

    def to(self, device: torch.device) -> SaeStack:
        """The same there; itself where it is there already."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return self if device == self.W_enc.device else SaeStack(**moved, row_k=self.row_k)

    def take(self, other: SaeStack) -> None:
        """Takes over the numbers of a stack of the same shape, from any device."""
        for name, tensor in self.tensors().items():
            tensor.copy_(other.tensors()[name])

    def copy(self) -> SaeStack:
        """All of them, in memory of their own."""
        return self.of_sites(list(range(self.sites)))

    @staticmethod
    def joined(stacks: list[SaeStack]) -> SaeStack:
        """One stack of them all."""
        names = stacks[0].tensors()
        tensors = {name: torch.cat([stack.tensors()[name] for stack in stacks]) for name in names}
        return SaeStack(**tensors, row_k=stacks[0].row_k)

    def tensors(self) -> dict[str, Tensor]:
        """All of its tensors by name, in its own memory."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def inliers(self, site: int, rows: Tensor) -> Tensor:
        """Which raw rows [B, D] of a site are not of outlying norm; [B] bool."""
        inliers: Tensor = rows.float().norm(dim=-1) <= self.norm_limit[site]
        return inliers

    def encode(self, site: int, rows: Tensor, latents: list[int] | None = None) -> Tensor:
        """Latents of raw rows at inference, all or some; [B, D] -> [B, F], >= 0, in scaled units."""
        centred = rows.float() / self.scale[site] - self.b_dec[site]
        if self.row_k:
            pre = centred @ self.W_enc[site].T + self.b_enc[site]
            top = pre.topk(self.row_k, dim=1)
            every = torch.zeros_like(pre).scatter_(1, top.indices, top.values.relu())
            return every if latents is None else every[:, latents]
        some = slice(None) if latents is None else latents
        pre = centred @ self.W_enc[site][some].T + self.b_enc[site][some]
        return torch.where(pre > self.threshold[site][some], pre, torch.zeros_like(pre))

    def decode(self, site: int, latents: Tensor) -> Tensor:
        """Reconstruction in the units of the raw rows; [B, F] -> [B, D]."""
        return (latents @ self.W_dec[site] + self.b_dec[site]) * self.scale[site]


@dataclass(frozen=True)
class SaeFit:
    """Of one autoencoder on rows it was not trained on: FVU >= 0, mean active latents L0, and how often each fires.

    firing_rates: [F], shares of the rows. strengths: [F], mean activations where they fire. mean: [D] float64, of the
    rows. spread: mean squared distance of the rows from it.
    """

    fvu: float
    l0: float
    firing_rates: Tensor
    strengths: Tensor
    mean: Tensor
    spread: float


def fit_on(stack: SaeStack, site: int, batches: Iterable[Tensor]) -> SaeFit:
    """FVU = sum |x - xhat|^2 / sum |x - mean|^2 and L0 of one autoencoder over batches of raw rows [B, D].

    Raises:
        ValueError: the rows do not vary, or there are none; FVU has no meaning then.
    """
    residual = square = 0.0
    count = 0
    active, sums = torch.zeros(2, stack.b_enc.shape[1], dtype=torch.float64)
    total = torch.zeros(stack.b_dec.shape[1], dtype=torch.float64)
    for rows in batches:
        latents = stack.encode(site, rows)
        residual += float((rows.float() - stack.decode(site, latents)).double().square().sum())
        active += (latents > 0).sum(0)
        sums += latents.sum(0)
        total += rows.double().sum(0)
        square += float(rows.double().square().sum())
        count += len(rows)
    variance = square - float(total.square().sum()) / count if count else 0.0
    if variance <= 1e-10 * square or not count:
        raise ValueError(f"the {count} rows at site {site} have no variance, so FVU is undefined")
    return SaeFit(
        fvu=residual / variance,
        l0=float(active.sum()) / count,
        firing_rates=active / count,
        strengths=sums / active.clamp_min(1),
        mean=total / count,
        spread=variance / count,
    )
