"""Training of many sparse autoencoders side by side.

What BatchTopK and TopK keep is 1 % of the latents: only the encoder's product is dense there, decoding and every
gradient are sparse, written out by hand. `tests/unit/workers/analysis/test_sae_training.py` compares them with autograd
on dense tensors.

Shapes: S autoencoders (sites), B rows (tokens), D input width, F latents, K = the pairs of row and latent kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.analysis.plateau import LossCurve
from workers.analysis.sae import DECAY_SHARE, MIN_BATCH, SaeConfig, SaeStack

AUX_WEIGHT = 1 / 32
CLIP_NORM = 0.01
"""Of the whole gradient, for rows of mean squared norm 1: nearly every step is clipped; see docs/decisions/0003."""

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
_SAMPLE_STRIDE = MIN_BATCH
_SAMPLE_MARGIN = 1.15

START_ACTIVE = 8
"""Times k: how many latents of a row are active when a penalised architecture starts."""

FIRST_PENALTY, STEERING = 1e-2, 10.0
"""The penalised architectures' coefficient, and by which power of e it can change over a run, either way."""

THRESHOLD_WINDOW = 0.1
"""JumpReLU's bandwidth, for rows of mean squared norm 1: the published 0.001 sees too few values in a short run."""


class Selected(NamedTuple):
    """The latents that BatchTopK keeps, sorted by row: rows [K], latents [K], values [K] and row starts [B + 1]."""

    rows: Tensor
    latents: Tensor
    values: Tensor
    starts: Tensor


class StackTrainer:
    """Trains a stack, a batch of the same tokens at every site at a time.

    One site's product fills the cores of a CPU, so sites take turns; each site's gradient lives only as long as its
    turn, and memory beyond the parameters and Adam's moments does not grow with S.
    """

    def __init__(self, stack: SaeStack, config: SaeConfig, dtype: torch.dtype) -> None:
        self.stack = stack
        self.config = config
        self.done = 0
        self.end = config.steps
        self.losses = LossCurve(config.steps, stack.sites)
        device = stack.W_enc.device
        self._offered, self._outliers = torch.zeros(2, stack.sites, device=device)
        self._dtype = dtype
        self._errors = torch.zeros(stack.sites, device=device)
        self._variance = torch.ones(stack.sites, device=device)
        self._silent_for = torch.zeros(stack.sites, config.latents, device=device)
        self._parameters = [stack.W_enc, stack.W_dec, stack.b_enc, stack.b_dec]
        if config.architecture == "jumprelu":
            self._parameters.append(stack.threshold)
        self._penalty = torch.full((stack.sites,), FIRST_PENALTY, device=device)
        self._first_moments = tuple(map(torch.zeros_like, self._parameters))
        self._second_moments = tuple(map(torch.zeros_like, self._parameters))

    def step(self, batch: Iterable[Tensor], after_site: Callable[[int], None] | None = None) -> None:
        """One optimiser step at every site.

        Args:
            batch: raw rows [B, D] of each of S sites; what makes them may be lazy.
            after_site: called after each site with its number; where it raises, the stack is of no further use.
        """
        for site, rows in enumerate(batch):
            self._site_step(site, rows)
            if after_site is not None:
                after_site(site)
        self.done += 1
        self.losses.add(self._errors)

    def end_on_plateau(self) -> None:
        """Where no site gets better any more, lets the learning rate fall from here: a fifth of the run is left then.

        As long as one site does, all go on: what is compared across sites has seen as many steps.
        """
        early = math.ceil(self.done / (1 - DECAY_SHARE))
        if early < self.end and self.losses.flat:
            self.end = early

    def state(self) -> Iterator[dict[str, Tensor]]:
        """All that a trainer of the same configuration needs to go on as if it had not stopped: of each site, the rest.

        In memory of their own, one after another.
        """
        for site in range(self.stack.sites):
            yield {name: tensor[site].cpu().clone() for name, tensor in self._of_sites().items()}
        yield {"done": torch.tensor(self.done), "end": torch.tensor(self.end), **self.losses.state()}

    def restore(self, state: Iterable[dict[str, Tensor]]) -> None:
        """Goes on from what `state` gave."""
        parts = iter(state)
        for site in range(self.stack.sites):
            saved = next(parts)
            for name, tensor in self._of_sites().items():
                tensor[site] = saved[name]
        rest = next(parts)
        self.done, self.end = int(rest["done"]), int(rest["end"])
        self.losses.restore(rest)

    def _of_sites(self) -> dict[str, Tensor]:
        """Everything that training changes, [S, ...] each."""
        moments = {
            f"{order}_moment_{number}": moment
            for order, all_of_them in (("first", self._first_moments), ("second", self._second_moments))
            for number, moment in enumerate(all_of_them)
        }
        counts = {"silent_for": self._silent_for, "penalty": self._penalty}
        seen = {"offered": self._offered, "outliers": self._outliers, "variance": self._variance}
        return self.stack.tensors() | moments | counts | seen

    @property
    def unexplained(self) -> Tensor:
        """Of each span of steps so far, what was not rebuilt as a share of the first batch's variance; [spans, S].

        Of batches before they are trained on; what dead latents rebuild does not count.
        """
        means = self.losses.means
        return torch.stack(means) / self._variance.cpu() if means else torch.zeros(0, self.stack.sites)

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
        x = self._inlier_rows(site, rows) / self.stack.scale[site]
        x_centred = x - self.stack.b_dec[site]
        if not self.done:
            self._variance[site] = (x - x.mean(0)).square().sum(1).mean().clamp_min(1e-12)
        if self.config.architecture in ("batch_topk", "topk"):
            kept = self._keep(site, x_centred)
            gradients = self._gradients(site, x, x_centred, kept)
            fired = kept.latents
        else:
            pre = self._pre_activations(site, x_centred).float()
            if not self.done:
                self._start_sparse(site, pre)
            gradients, fired = self._penalised_gradients(site, x, x_centred, pre)
        self._descend(site, gradients)
        self._silent_for[site] += len(x)
        self._silent_for[site][fired] = 0
        if self.config.architecture == "batch_topk":
            self._follow_threshold(site, kept)

    def _inlier_rows(self, site: int, rows: Tensor) -> Tensor:
        """The rows without those of outlying norm, which would rule the loss."""
        inliers = self.stack.inliers(site, rows)
        self._offered[site] += len(rows)
        kept = int(inliers.sum())
        self._outliers[site] += len(rows) - kept
        return (rows if kept == len(rows) else rows[inliers]).float()

    def _pre_activations(self, site: int, x_centred: Tensor) -> Tensor:
        W_enc, b_enc = self.stack.W_enc[site].to(self._dtype), self.stack.b_enc[site].to(self._dtype)
        return torch.addmm(b_enc, x_centred.to(self._dtype), W_enc.T)

    def _keep(self, site: int, x_centred: Tensor) -> Selected:
        pre = self._pre_activations(site, x_centred)
        if self.config.architecture == "topk":
            return row_topk(pre, self.config.k)
        return batch_topk(pre, self.config.k * len(x_centred))

    def _gradients(self, site: int, x: Tensor, x_centred: Tensor, kept: Selected) -> list[Tensor]:
        """Of the mean squared error over rows, plus AuxK on the dead; in the order of the parameters."""
        W_enc, W_dec = self.stack.W_enc[site], self.stack.W_dec[site]
        rows, latents = len(x), self.config.latents
        error = _csr(kept.starts, kept.latents, kept.values, (rows, latents)) @ W_dec + self.stack.b_dec[site] - x
        self._errors[site] = error.square().sum() / rows
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
        self._revive(site, x_centred, -error, g_W_enc, g_W_dec, g_b_enc)
        return [g_W_enc, g_W_dec, g_b_enc, g_b_dec]

    def _revive(
        self, site: int, x_centred: Tensor, residual: Tensor, g_W_enc: Tensor, g_W_dec: Tensor, g_b_enc: Tensor
    ) -> None:
        """AuxK (Gao et al. 2024): the strongest dead latents learn to rebuild what the living ones miss."""
        dead = (self._silent_for[site] > self.config.dead_after).nonzero().squeeze(1)
        if not len(dead):
            return
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

    def _descend(self, site: int, gradients: list[Tensor]) -> None:
        """A clipped Adam step that keeps decoder rows at unit norm."""
        W_dec, g_W_dec = self.stack.W_dec[site], gradients[1]
        g_W_dec.addcmul_(torch.einsum("fd,fd->f", g_W_dec, W_dec)[:, None], W_dec, value=-1.0)
        weights = gradients[:4]  # a threshold's gradient is of another kind, and Adam takes out its size
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in weights))
        if norm > CLIP_NORM:
            for gradient in weights:
                gradient.mul_(CLIP_NORM / norm)
        of_site = (
            [tensor[site] for tensor in tensors]
            for tensors in (self._parameters, self._first_moments, self._second_moments)
        )
        parameters, first, second = of_site
        fused_adam(parameters, gradients, first, second, self.done, self.config.rate_at(self.done, self.end))
        W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        if self.config.architecture == "jumprelu":
            self.stack.threshold[site].clamp_min_(0.0)

    def _follow_threshold(self, site: int, kept: Selected) -> None:
        smallest = float(kept.values.min()) if len(kept.values) else 0.0
        memory = self.config.threshold_memory if self.done else 0.0
        self.stack.threshold[site].mul_(memory).add_((1 - memory) * smallest)

    def _start_sparse(self, site: int, pre: Tensor) -> None:
        """Begins with few active latents for a row: from half of all, a short run would never come down to k."""
        bound = batch_topk(pre, START_ACTIVE * self.config.k * len(pre)).values.min()
        if self.config.architecture == "jumprelu":
            self.stack.threshold[site] = bound
        else:
            self.stack.b_enc[site] -= bound
            pre -= bound

    def _penalised_gradients(self, site: int, x: Tensor, x_centred: Tensor, pre: Tensor) -> tuple[list[Tensor], Tensor]:
        """Of the mean squared error plus the penalty on what is active, and which latents fired.

        relu_l1: the sum of a row's latents (decoder rows have unit norm). jumprelu: their number, whose gradient to the
        thresholds is estimated in a window of THRESHOLD_WINDOW around them.
        """
        rows, penalty = len(x), float(self._penalty[site])
        W_enc, W_dec, threshold = self.stack.W_enc[site], self.stack.W_dec[site], self.stack.threshold[site]
        active = pre > threshold
        latents = pre * active
        error = self._product(latents, W_dec) + self.stack.b_dec[site] - x
        self._errors[site] = error.square().sum() / rows
        g_error = error * (2 / rows)
        g_latents = self._product(g_error, W_dec.T)
        of_sum = penalty / rows if self.config.architecture == "relu_l1" else 0.0
        g_pre = (g_latents + of_sum) * active
        g_W_enc, g_W_dec = self._product(g_pre.T, x_centred), self._product(latents.T, g_error)
        g_b_enc = g_pre.sum(0)
        g_b_dec = g_error.sum(0) - g_b_enc @ W_enc
        self._revive(site, x_centred, -error, g_W_enc, g_W_dec, g_b_enc)
        gradients = [g_W_enc, g_W_dec, g_b_enc, g_b_dec]
        if self.config.architecture == "jumprelu":
            near = ((pre - threshold).abs() < THRESHOLD_WINDOW / 2).float()
            gradients.append(-((g_latents * threshold + penalty / rows) * near).sum(0) / THRESHOLD_WINDOW)
        self._steer(site, float(active.sum()) / rows)
        return gradients, active.any(0).nonzero()[:, 0]

    def _product(self, one: Tensor, other: Tensor) -> Tensor:
        return (one.to(self._dtype) @ other.to(self._dtype)).float()

    def _steer(self, site: int, l0: float) -> None:
        """Raises the penalty where more than k latents are active, and lowers it where fewer are."""
        error = math.log(max(l0, 1e-3) / self.config.k)
        self._penalty[site] *= math.exp(STEERING / self.config.steps * min(1.0, max(-1.0, error)))


def fused_adam(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    done: int,
    rate: float,
) -> None:
    """One step of Adam on tensors of one device, in place, after `done` earlier ones."""
    torch._fused_adam_(
        list(parameters),
        list(gradients),
        list(first_moments),
        list(second_moments),
        [],
        [torch.tensor(float(done + 1), device=gradient.device) for gradient in gradients],
        lr=rate,
        beta1=ADAM_BETAS[0],
        beta2=ADAM_BETAS[1],
        weight_decay=0.0,
        eps=ADAM_EPS,
        amsgrad=False,
        maximize=False,
    )


def batch_topk(pre: Tensor, count: int) -> Selected:
    """The `count` largest positive entries of `pre` [B, F]; ties at the last place are all kept.

    Exact. A sample of rows bounds the threshold from below, so that only a few candidates are ever sorted.
    """
    rows, latents = pre.shape
    flat = pre.reshape(-1)
    count = min(count, flat.numel())
    sample = pre[::_SAMPLE_STRIDE].reshape(-1).float()
    sampled = min(sample.numel(), int(count * sample.numel() / flat.numel() * _SAMPLE_MARGIN) + 1)
    bound = max(0.0, _smallest_of_largest(sample, sampled))
    places = _above(flat, bound)
    if len(places) < count and bound > 0.0:  # the sample misled: look at all that is positive
        places = _above(flat, 0.0)
    values = flat[places].float()
    if len(values) > count:
        kept = values >= _smallest_of_largest(values, count)
        places, values = places[kept], values[kept]
    row_of = places // latents
    return Selected(row_of, places - row_of * latents, values, _starts(row_of, rows))


def _smallest_of_largest(values: Tensor, count: int) -> float:
    """The `count`-th largest of float32 values; numpy partitions them several times as fast as `topk` sorts them."""
    place = len(values) - count
    return float(np.partition(values.numpy(), place)[place])


def _above(flat: Tensor, bound: float) -> Tensor:
    """The places of the entries above a bound, which is 0 or more and a number of their dtype.

    Numbers of one sign order as the integers of the same bits do, which are compared at twice the speed of bfloat16.
    """
    bits = torch.int32 if flat.dtype == torch.float32 else torch.int16
    limit = torch.tensor(bound, dtype=flat.dtype).view(bits)
    return torch.from_numpy(np.flatnonzero((flat.view(bits) > limit).numpy()))


def row_topk(pre: Tensor, k: int) -> Selected:
    """The k largest of each row of `pre` [B, F], without those that are not positive."""
    top = pre.topk(min(k, pre.shape[1]), dim=1)
    latents, order = top.indices.sort(dim=1)
    values = top.values.gather(1, order)
    positive = values > 0
    rows = positive.nonzero()[:, 0]
    return Selected(rows, latents[positive], values[positive].float(), _starts(rows, len(pre)))


def _starts(sorted_or_not: Tensor, size: int) -> Tensor:
    """CSR row pointers for entries that belong to these rows; [K] -> [size + 1]."""
    starts = torch.zeros(size + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(sorted_or_not, minlength=size), 0, out=starts[1:])
    return starts


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
