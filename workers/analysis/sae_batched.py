"""Training of a whole stack at once, for GPUs: every product is one batched matrix product over all sites.

What `StackTrainer` computes site by site and sparsely, this computes densely for all of them: on a GPU dense products
cost less than finding the few places that matter. `tests/unit/workers/analysis/test_sae_batched.py` compares both.

Shapes: S autoencoders (sites), B rows (tokens), D input width, F latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from workers.analysis.sae_training import (
    AUX_WEIGHT,
    CLIP_NORM,
    START_ACTIVE,
    STEERING,
    THRESHOLD_WINDOW,
    StackTrainer,
    fused_adam,
)


def sent(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on a device; to a GPU from pinned memory, so that it works on while they come."""
    if device.type != "cuda" or rows.device == device:
        return rows.to(device)
    return rows.pin_memory().to(device, non_blocking=True)


class _Batch(NamedTuple):
    """Scaled rows of all sites, zero where they are of outlying norm; [S, B, D].

    inliers: [S, B] bool. counts: [S], inliers of each site. centred: less b_dec, zero for outliers.
    """

    x: Tensor
    centred: Tensor
    inliers: Tensor
    counts: Tensor


DEAD_CHECK_STEPS = 16
"""The host asks for dead latents once in so many steps: each answer waits for all that the device has to do."""


class BatchedTrainer(StackTrainer):
    """Trains a stack on the device where it lies; between two looks at dead latents nothing waits for the device."""

    _any_dead = False

    def step(self, batch: Iterable[Tensor], after_site: Callable[[int], None] | None = None) -> None:
        """One optimiser step at every site; `after_site` is called once, with the last one."""
        given = self._batch(torch.stack(list(batch)))
        pre = self._all_pre_activations(given)
        if self._penalised:
            active, gradients = self._penalised_step(given, pre)
        else:
            active, gradients = self._sparse_step(given, pre)
        self._descend_all(gradients)
        self._silent_for += given.counts[:, None]
        self._silent_for.masked_fill_(active.any(1), 0.0)
        if self.config.architecture == "batch_topk":
            smallest = torch.where(active, pre, torch.inf).amin((1, 2)).float()
            smallest = torch.where(smallest.isfinite(), smallest, 0.0)[:, None]
            memory = self.config.threshold_memory if self.done else 0.0
            self.stack.threshold.mul_(memory).add_((1 - memory) * smallest)
        self.done += 1
        self.losses.add(self._errors)
        if after_site is not None:
            after_site(self.stack.sites - 1)

    @property
    def _penalised(self) -> bool:
        return self.config.architecture in ("jumprelu", "relu_l1")

    def _batch(self, rows: Tensor) -> _Batch:
        rows = sent(rows, self.stack.W_enc.device).float()
        inliers = rows.norm(dim=-1) <= self.stack.norm_limit[:, None]
        counts = inliers.sum(1)
        self._offered += rows.shape[1]
        self._outliers += rows.shape[1] - counts
        x = rows / self.stack.scale[:, None, None] * inliers[..., None]
        if not self.done:
            mean = x.sum(1, keepdim=True) / counts[:, None, None]
            squares = ((x - mean) * inliers[..., None]).square().sum((1, 2))
            self._variance.copy_((squares / counts).clamp_min(1e-12))
        return _Batch(x, (x - self.stack.b_dec[:, None]) * inliers[..., None], inliers, counts)

    def _all_pre_activations(self, batch: _Batch) -> Tensor:
        """[S, B, F]; minus infinity in rows that do not count."""
        W_enc, b_enc = self.stack.W_enc.to(self._dtype), self.stack.b_enc[:, None].to(self._dtype)
        pre = torch.baddbmm(b_enc, batch.centred.to(self._dtype), W_enc.transpose(1, 2))
        return pre.masked_fill_(~batch.inliers[..., None], -torch.inf)

    def _product(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.bmm(one.to(self._dtype), other.to(self._dtype)).float()

    def _sparse_step(self, batch: _Batch, pre: Tensor) -> tuple[Tensor, list[Tensor]]:
        if self.config.architecture == "topk":
            top = pre.topk(min(self.config.k, pre.shape[2]), dim=2)
            active = torch.zeros_like(pre, dtype=torch.bool).scatter_(2, top.indices, top.values > 0)
        else:
            most = self.config.k * pre.shape[1]
            active = (pre >= _threshold(pre, self.config.k * batch.counts, most)) & (pre > 0)
        latents = torch.where(active, pre, 0.0)
        error, g_error = self._error(batch, latents)
        g_latents = self._product(g_error, self.stack.W_dec.transpose(1, 2))
        gradients = self._all_gradients(batch, latents, g_latents * active, g_error)
        self._revive_all(batch, pre, -error, gradients)
        return active, gradients

    def _penalised_step(self, batch: _Batch, pre: Tensor) -> tuple[Tensor, list[Tensor]]:
        pre = pre.float()
        jumps = self.config.architecture == "jumprelu"
        if not self.done:
            smallest = torch.where(pre > 0, pre, torch.inf).amin((1, 2), keepdim=True)
            most = START_ACTIVE * self.config.k * pre.shape[1]
            bound = _threshold(pre, START_ACTIVE * self.config.k * batch.counts, most).maximum(smallest)[:, 0]
            if jumps:
                self.stack.threshold.copy_(bound.expand_as(self.stack.threshold))
            else:
                self.stack.b_enc -= bound
                pre -= bound[:, None]
        threshold, penalty = self.stack.threshold[:, None], (self._penalty / batch.counts)[:, None, None]
        active = pre > threshold
        latents = torch.where(active, pre, 0.0)
        error, g_error = self._error(batch, latents)
        g_latents = self._product(g_error, self.stack.W_dec.transpose(1, 2))
        gradients = self._all_gradients(batch, latents, (g_latents + (0.0 if jumps else penalty)) * active, g_error)
        self._revive_all(batch, pre, -error, gradients)
        if jumps:
            near = ((pre - threshold).abs() < THRESHOLD_WINDOW / 2).float()
            gradients.append(-((g_latents * threshold + penalty) * near).sum(1) / THRESHOLD_WINDOW)
        l0 = active.sum((1, 2)) / batch.counts
        steer = (l0.clamp_min(1e-3) / self.config.k).log().clamp(-1.0, 1.0)
        self._penalty *= (STEERING / self.config.steps * steer).exp()
        return active, gradients

    def _error(self, batch: _Batch, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the reconstruction has too much, and the loss's gradient to it; [S, B, D], zero for outliers."""
        rebuilt = self._product(latents, self.stack.W_dec) + self.stack.b_dec[:, None]
        error = (rebuilt - batch.x) * batch.inliers[..., None]
        self._errors.copy_(error.square().sum((1, 2)) / batch.counts)
        return error, error * (2 / batch.counts)[:, None, None]

    def _all_gradients(self, batch: _Batch, latents: Tensor, g_pre: Tensor, g_error: Tensor) -> list[Tensor]:
        g_b_enc = g_pre.sum(1).float()
        g_b_dec = g_error.sum(1) - torch.bmm(g_b_enc[:, None], self.stack.W_enc)[:, 0]
        return [
            self._product(g_pre.transpose(1, 2), batch.centred),
            self._product(latents.transpose(1, 2), g_error),
            g_b_enc,
            g_b_dec,
        ]

    def _revive_all(self, batch: _Batch, pre: Tensor, residual: Tensor, gradients: list[Tensor]) -> None:
        """AuxK (Gao et al. 2024), as `StackTrainer` has it."""
        dead = self._silent_for > self.config.dead_after
        if self.done % DEAD_CHECK_STEPS == 0:
            self._any_dead = bool(dead.any())
        if not self._any_dead:
            return
        strongest = min(batch.x.shape[2] // 2, pre.shape[2])
        top = torch.where(dead[:, None], pre, -torch.inf).topk(strongest, dim=2)
        z = torch.zeros_like(pre).scatter_(2, top.indices, top.values.relu()).float()
        scale = (2 * AUX_WEIGHT / batch.counts)[:, None, None] * batch.inliers[..., None]
        g_error = (self._product(z, self.stack.W_dec) - residual) * scale
        g_z = self._product(g_error, self.stack.W_dec.transpose(1, 2)) * (z > 0)
        gradients[0] += self._product(g_z.transpose(1, 2), batch.centred)
        gradients[1] += self._product(z.transpose(1, 2), g_error)
        gradients[2] += g_z.sum(1)

    def _descend_all(self, gradients: list[Tensor]) -> None:
        """A clipped Adam step at every site that keeps decoder rows at unit norm."""
        W_dec, g_W_dec = self.stack.W_dec, gradients[1]
        g_W_dec -= (g_W_dec * W_dec).sum(2, keepdim=True) * W_dec
        squares = sum(gradient.square().flatten(1).sum(1) for gradient in gradients[:4])
        clip = (CLIP_NORM / torch.as_tensor(squares).sqrt()).clamp_max(1.0)
        for gradient in gradients[:4]:
            gradient *= clip.reshape(-1, *[1] * (gradient.dim() - 1))
        rate = self.config.rate_at(self.done, self.end)
        fused_adam(self._parameters, gradients, self._first_moments, self._second_moments, self.done, rate)
        W_dec.div_(W_dec.norm(dim=2, keepdim=True))
        if self.config.architecture == "jumprelu":
            self.stack.threshold.clamp_min_(0.0)


def _threshold(pre: Tensor, counts: Tensor, most: int) -> Tensor:
    """The value of the counts[s]-th largest entry of pre [S, B, F] at each site, at most the `most`-th; [S, 1, 1]."""
    flat = pre.flatten(1)
    most = min(most, flat.shape[1])
    top = flat.topk(most, dim=1).values
    return top.gather(1, counts.clamp(1, most)[:, None] - 1)[..., None]
