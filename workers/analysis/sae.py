"""BatchTopK sparse autoencoders (Bussmann et al. 2024, arXiv 2412.06410), many trained side by side.

Only the encoder's product is dense. What BatchTopK keeps is 1 % of the latents, so decoding and every gradient are
sparse, written out by hand; `tests/unit/workers/test_sae.py` holds them against autograd on dense tensors.

Shapes: S autoencoders (sites), B rows (tokens), D input width, F latents, K = the B*k pairs of row and latent kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

AUX_WEIGHT = 1 / 32
DEAD_SHARE = 0.05
"""A latent is dead when it has not fired for this share of the run's tokens."""

WARMUP_SHARE, DECAY_SHARE, MAX_WARMUP_STEPS = 0.05, 0.2, 1000
CLIP_NORM = 1.0
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
MAX_THRESHOLD_MEMORY = 0.999
OUTLIER_FACTOR = 10.0
_SAMPLE_STRIDE = 16
_SAMPLE_MARGIN = 1.15


@dataclass(frozen=True)
class SaeConfig:
    """How a stack is trained.

    latents: F. k: latents kept for a row, on average. steps: optimiser steps. batch: rows in a step.
    """

    latents: int
    k: int
    steps: int
    batch: int = 2048

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.latents:
            raise ValueError(f"k must lie between 1 and the number of latents ({self.latents}); it is {self.k}")
        if self.steps < 1 or self.batch < _SAMPLE_STRIDE:
            raise ValueError(f"steps must be at least 1 and batch at least {_SAMPLE_STRIDE}")

    @property
    def learning_rate(self) -> float:
        """Peak rate: 2e-3 up to 250 steps, then falling with the root of the steps to 2e-4 / sqrt(F / 2^14).

        The floor is the usual rule for long runs (Gao et al. 2024). A run of a few hundred steps would stop far from
        its optimum at that rate: see docs/decisions/0003-sae-learning-rate.md.
        """
        floor = 2e-4 / math.sqrt(self.latents / 2**14)
        return max(floor, 2e-3 * math.sqrt(250 / max(self.steps, 250)))

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, 0-based: linear warm-up, flat, linear decay over the last fifth."""
        warmup = max(1, min(MAX_WARMUP_STEPS, round(WARMUP_SHARE * self.steps)))
        remaining = (self.steps - step) / max(1.0, DECAY_SHARE * self.steps)
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


def _normalisation_of_site(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, mean of the scaled rows, and largest usual norm of one site's rows [N, D]."""
    rows = rows.float()
    norms = rows.norm(dim=-1)
    limit = OUTLIER_FACTOR * norms.median()
    usual = norms <= limit
    scale = norms[usual].square().mean().sqrt().clamp_min(1e-12)
    return scale, rows[usual].mean(0) / scale, limit


class Kept(NamedTuple):
    """The latents that BatchTopK keeps, sorted by row: rows [K], latents [K], values [K] and row starts [B + 1]."""

    rows: Tensor
    latents: Tensor
    values: Tensor
    starts: Tensor


@dataclass
class SaeStack:
    """S autoencoders. Inputs are divided by `scale` first; a row of W_enc or W_dec belongs to one latent.

    W_enc, W_dec: [S, F, D]; b_enc: [S, F]; b_dec: [S, D]; scale, norm_limit, threshold: [S]. All float32. At
    inference a latent fires when its pre-activation is above the threshold, in scaled units.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    scale: Tensor
    norm_limit: Tensor
    threshold: Tensor

    @classmethod
    def initial(cls, normalisation: Normalisation, latents: int, generator: torch.Generator) -> SaeStack:
        """Random unit decoder rows, the same for every site; the encoder is their transpose, b_dec the mean."""
        sites, width = normalisation.mean.shape
        rows = torch.randn(latents, width, generator=generator)
        rows = (rows / rows.norm(dim=1, keepdim=True)).expand(sites, -1, -1)
        return cls(
            W_enc=rows.clone(),
            W_dec=rows.clone(),
            b_enc=torch.zeros(sites, latents),
            b_dec=normalisation.mean.clone(),
            scale=normalisation.scale.clone(),
            norm_limit=normalisation.norm_limit.clone(),
            threshold=torch.zeros(sites),
        )

    @property
    def sites(self) -> int:
        """S."""
        return self.W_enc.shape[0]

    def usual(self, site: int, rows: Tensor) -> Tensor:
        """Which raw rows [B, D] of a site are not of outlying norm; [B] bool."""
        usual: Tensor = rows.float().norm(dim=-1) <= self.norm_limit[site]
        return usual

    def encode(self, site: int, rows: Tensor) -> Tensor:
        """Latents of raw rows at inference; [B, D] -> [B, F], >= 0, in scaled units."""
        centred = rows.float() / self.scale[site] - self.b_dec[site]
        pre = centred @ self.W_enc[site].T + self.b_enc[site]
        return torch.where(pre > self.threshold[site], pre, torch.zeros_like(pre))

    def decode(self, site: int, latents: Tensor) -> Tensor:
        """Reconstruction in the units of the raw rows; [B, F] -> [B, D]."""
        return (latents @ self.W_dec[site] + self.b_dec[site]) * self.scale[site]


class StackTrainer:
    """Trains a stack, a batch of the same tokens at every site at a time.

    One site's product fills the cores of a CPU, so sites take turns; each site's gradient lives only as long as its
    turn, and memory beyond the parameters and Adam's moments does not grow with S.
    """

    def __init__(self, stack: SaeStack, config: SaeConfig, dtype: torch.dtype) -> None:
        self.stack = stack
        self.config = config
        self._offered, self._outliers = torch.zeros(2, stack.sites)
        self._dtype = dtype
        self._step = 0
        self._silent_for = torch.zeros(stack.sites, config.latents)
        self._parameters = (stack.W_enc, stack.W_dec, stack.b_enc, stack.b_dec)
        self._first_moments = tuple(map(torch.zeros_like, self._parameters))
        self._second_moments = tuple(map(torch.zeros_like, self._parameters))

    def step(self, batch: Tensor) -> None:
        """One optimiser step at every site; batch: [S, B, D] raw rows."""
        for site in range(self.stack.sites):
            self._site_step(site, batch[site])
        self._step += 1

    @property
    def dead_fraction(self) -> Tensor:
        """Share of latents that did not fire in the last DEAD_SHARE of the run's tokens; [S]."""
        return (self._silent_for > self.config.dead_after).float().mean(1)

    @property
    def outlier_share(self) -> Tensor:
        """Share of the rows offered so far that were left out for their norm; [S]."""
        share: Tensor = self._outliers / self._offered.clamp_min(1)
        return share

    def _site_step(self, site: int, rows: Tensor) -> None:
        x = self._usual_rows(site, rows) / self.stack.scale[site]
        x_centred = x - self.stack.b_dec[site]
        kept = self._keep(site, x_centred)
        gradients = self._gradients(site, x, x_centred, kept)
        self._descend(site, gradients)
        self._remember(site, kept, len(x))

    def _usual_rows(self, site: int, rows: Tensor) -> Tensor:
        """The rows without those of outlying norm, which would rule the loss."""
        usual = self.stack.usual(site, rows)
        self._offered[site] += len(rows)
        self._outliers[site] += len(rows) - int(usual.sum())
        return rows[usual].float()

    def _keep(self, site: int, x_centred: Tensor) -> Kept:
        W_enc, b_enc = self.stack.W_enc[site].to(self._dtype), self.stack.b_enc[site].to(self._dtype)
        pre = torch.addmm(b_enc, x_centred.to(self._dtype), W_enc.T)
        return batch_topk(pre, self.config.k * len(x_centred))

    def _gradients(self, site: int, x: Tensor, x_centred: Tensor, kept: Kept) -> tuple[Tensor, ...]:
        """Of the mean squared error over rows, plus AuxK on the dead; in the order of the parameters."""
        W_enc, W_dec = self.stack.W_enc[site], self.stack.W_dec[site]
        rows, latents = len(x), self.config.latents
        error = _csr(kept.starts, kept.latents, kept.values, (rows, latents)) @ W_dec + self.stack.b_dec[site] - x
        g_error = error * (2 / rows)
        zeros = _csr(kept.starts, kept.latents, torch.zeros_like(kept.values), (rows, latents))
        g_values = torch.sparse.sampled_addmm(zeros, g_error, W_dec.T, beta=0.0).values()
        by_latent = torch.argsort(kept.latents, stable=True)
        starts = _starts(kept.latents, latents)
        columns = kept.rows[by_latent]
        g_W_dec = _csr(starts, columns, kept.values[by_latent], (latents, rows)) @ g_error
        g_W_enc = _csr(starts, columns, g_values[by_latent], (latents, rows)) @ x_centred
        g_b_enc = torch.zeros(latents).index_add_(0, kept.latents, g_values)
        g_b_dec = g_error.sum(0) - g_b_enc @ W_enc
        dead = (self._silent_for[site] > self.config.dead_after).nonzero().squeeze(1)
        if len(dead):
            self._add_aux(site, dead, x_centred, -error, g_W_enc, g_W_dec, g_b_enc)
        return g_W_enc, g_W_dec, g_b_enc, g_b_dec

    def _add_aux(
        self,
        site: int,
        dead: Tensor,
        x_centred: Tensor,
        residual: Tensor,
        g_W_enc: Tensor,
        g_W_dec: Tensor,
        g_b_enc: Tensor,
    ) -> None:
        """AuxK (Gao et al. 2024): the strongest dead latents learn to rebuild what the living ones miss."""
        W_enc, W_dec = self.stack.W_enc[site][dead], self.stack.W_dec[site][dead]
        pre = (x_centred @ W_enc.T + self.stack.b_enc[site][dead]).relu()
        strongest = min(x_centred.shape[1] // 2, len(dead))
        top = pre.topk(strongest, dim=1)
        z = torch.zeros_like(pre).scatter_(1, top.indices, top.values)
        g_error = (z @ W_dec - residual) * (2 * AUX_WEIGHT / len(x_centred))
        g_z = (g_error @ W_dec.T) * (z > 0)
        g_W_dec.index_add_(0, dead, z.T @ g_error)
        g_W_enc.index_add_(0, dead, g_z.T @ x_centred)
        g_b_enc.index_add_(0, dead, g_z.sum(0))

    def _descend(self, site: int, gradients: tuple[Tensor, ...]) -> None:
        """A clipped Adam step that keeps decoder rows at unit norm."""
        W_dec, g_W_dec = self.stack.W_dec[site], gradients[1]
        g_W_dec.addcmul_(torch.einsum("fd,fd->f", g_W_dec, W_dec)[:, None], W_dec, value=-1.0)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        if norm > CLIP_NORM:
            for gradient in gradients:
                gradient.mul_(CLIP_NORM / norm)
        torch._fused_adam_(
            [parameter[site] for parameter in self._parameters],
            list(gradients),
            [moment[site] for moment in self._first_moments],
            [moment[site] for moment in self._second_moments],
            [],
            [torch.tensor(float(self._step + 1)) for _ in gradients],
            lr=self.config.rate_at(self._step),
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            weight_decay=0.0,
            eps=ADAM_EPS,
            amsgrad=False,
            maximize=False,
        )
        W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    def _remember(self, site: int, kept: Kept, rows: int) -> None:
        silent_for = self._silent_for[site]
        silent_for += rows
        silent_for[kept.latents] = 0
        smallest = kept.values.min() if len(kept.values) else torch.zeros(())
        memory = self.config.threshold_memory if self._step else 0.0
        self.stack.threshold[site].mul_(memory).add_(smallest, alpha=1 - memory)


def batch_topk(pre: Tensor, count: int) -> Kept:
    """The `count` largest positive entries of `pre` [B, F]; ties at the last place are all kept.

    Exact. A sample of rows bounds the threshold from below, so that only a few candidates are ever sorted.
    """
    rows, latents = pre.shape
    flat = pre.reshape(-1)
    count = min(count, flat.numel())
    sample = pre[::_SAMPLE_STRIDE].reshape(-1).float()
    sampled = min(sample.numel(), int(count * sample.numel() / flat.numel() * _SAMPLE_MARGIN) + 1)
    bound = max(0.0, float(sample.topk(sampled, sorted=False).values.min()))
    places = (flat > bound).nonzero().squeeze(1)
    if len(places) < count and bound > 0.0:  # the sample misled: look at all that is positive
        places = (flat > 0).nonzero().squeeze(1)
    values = flat[places].float()
    if len(values) > count:
        threshold = values.topk(count, sorted=False).values.min()
        kept = values >= threshold
        places, values = places[kept], values[kept]
    row_of = places // latents
    return Kept(row_of, places - row_of * latents, values, _starts(row_of, rows))


def _starts(sorted_or_not: Tensor, size: int) -> Tensor:
    """CSR row pointers for entries that belong to these rows; [K] -> [size + 1]."""
    starts = torch.zeros(size + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(sorted_or_not, minlength=size), 0, out=starts[1:])
    return starts


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


@dataclass(frozen=True)
class SaeFit:
    """Of one autoencoder on rows it was not trained on: FVU >= 0 and mean active latents L0."""

    fvu: float
    l0: float


def fit_on(stack: SaeStack, site: int, batches: Iterable[Tensor]) -> SaeFit:
    """FVU = sum |x - xhat|^2 / sum |x - mean|^2 and L0 of one autoencoder over batches of raw rows [B, D].

    Raises:
        ValueError: the rows do not vary, or there are none; FVU has no meaning then.
    """
    residual = square = active = 0.0
    count = 0
    total = torch.zeros(stack.b_dec.shape[1], dtype=torch.float64)
    for rows in batches:
        latents = stack.encode(site, rows)
        residual += float((rows.float() - stack.decode(site, latents)).double().square().sum())
        active += float((latents > 0).sum())
        total += rows.double().sum(0)
        square += float(rows.double().square().sum())
        count += len(rows)
    variance = square - float(total.square().sum()) / count if count else 0.0
    if variance <= 1e-10 * square or not count:
        raise ValueError(f"the {count} rows at site {site} do not vary; FVU has no meaning there")
    return SaeFit(residual / variance, active / count)
