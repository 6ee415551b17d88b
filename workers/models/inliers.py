"""Which tokens of a text are compared: one rule for every measure, view and model of an analysis.

Decoders park attention on a text's first token, and many models on a few others: their states are tens to thousands of
times as long as any other token's (massive activations; Xiao et al. 2024, arXiv 2309.17453; Sun et al. 2024,
arXiv 2402.17762) and hold nearly all the variance. A measure that sums squares would see these tokens and nothing else.

Two kinds of token are left out, at every layer and in both models alike: the first token of a text in a causal model,
whatever it is, and tokens that are longer than OUTLIER_FACTOR medians at any layer of either model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.models.texts import Batch

OUTLIER_FACTOR = 10.0
"""Medians of a layer's norms beyond which a token is an outlier."""


class Inliers:
    """The rule of one analysis, and what it left out of the texts that it has seen.

    Args:
        causal: the models are; the first token of every text is then left out.
        base_limits, tuned_limits: [L + 1], the largest norm of an inlier at every layer.
    """

    def __init__(self, causal: bool, base_limits: Tensor, tuned_limits: Tensor) -> None:
        self.causal = causal
        self.base_limits = base_limits
        self.tuned_limits = tuned_limits
        self._seen: dict[bytes, tuple[int, ...]] = {}

    @staticmethod
    def everywhere(causal: bool, layers: int) -> Inliers:
        """A rule without limits of norms."""
        none = torch.full((layers,), torch.inf)
        return Inliers(causal, none, none)

    @staticmethod
    def of(causal: bool, batches: Sequence[tuple[Batch, list[Tensor], list[Tensor]]]) -> Inliers:
        """The rule whose limits follow from some batches and the states of both models on them."""
        kept = [without_first(batch.real, causal) for batch, *_ in batches]
        sides = [
            torch.stack([limit_of([states[layer][real] for states, real in zip(side, kept, strict=True)])
                         for layer in range(len(side[0]))])
            for side in ([base for _, base, _ in batches], [tuned for _, _, tuned in batches])
        ]  # fmt: skip
        return Inliers(causal, *sides)

    def mark(self, batch: Batch, base: list[Tensor], tuned: list[Tensor]) -> Batch:
        """The batch with its outliers taken out of `real`; the rule remembers them.

        Args:
            base, tuned: the states of both models, [B, T, D] at every layer.
        """
        outlying = torch.zeros_like(batch.real)
        for states, limits in ((base, self.base_limits), (tuned, self.tuned_limits)):
            for state, limit in zip(states, limits.tolist(), strict=True):
                outlying |= state.norm(dim=-1) > limit
        outlying &= batch.attention_mask.bool()
        self.remember(batch, outlying)
        return without(batch, outlying, self.causal)

    def remember(self, batch: Batch, outlying: Tensor) -> None:
        """Keeps which tokens of a batch are outliers, [B, T] bool."""
        for row in outlying.any(1).nonzero()[:, 0].tolist():
            self._seen[_key(batch, row)] = tuple(outlying[row].nonzero()[:, 0].tolist())

    def known(self, batch: Batch) -> Batch:
        """The batch with the outliers taken out that were found in these texts before; so other models see the same."""
        outlying = torch.zeros_like(batch.real)
        for row in range(len(outlying)) if self._seen else ():
            outlying[row, list(self._seen.get(_key(batch, row), ()))] = True
        return without(batch, outlying, self.causal)


def without(batch: Batch, outlying: Tensor, causal: bool) -> Batch:
    """The batch without its outliers, [B, T] bool, and without first tokens in a causal model."""
    real = without_first(batch.real & ~outlying, causal)
    if causal:
        outlying = outlying.clone()
        outlying[:, 0] = True
    return batch._replace(real=real, outlying=outlying)


def without_first(real: Tensor, causal: bool) -> Tensor:
    """Which tokens count, [B, T] bool: in a causal model not the first of a text."""
    if not causal:
        return real
    kept = real.clone()
    kept[:, 0] = False
    return kept


def limit_of(rows: list[Tensor]) -> Tensor:
    """What an inlier's norm is at most, from some rows [N, D] of one layer; infinite where there are none."""
    norms = torch.cat([one.norm(dim=-1) for one in rows])
    if not len(norms):
        return torch.tensor(torch.inf)
    median = norms.median()
    return OUTLIER_FACTOR * median if float(median) > 0 else torch.tensor(torch.inf)


def _key(batch: Batch, row: int) -> bytes:
    length = int(batch.attention_mask[row].sum())
    return hashlib.blake2b(batch.input_ids[row, :length].numpy().tobytes(), digest_size=12).digest()
