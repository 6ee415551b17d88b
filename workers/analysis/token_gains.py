"""Tokens that a fine-tune makes more, or less, probable at many positions: diff mining (arXiv 2608.26462) among those
that a model would say.

At a position a token counts as gained where its log-probability rose and the tuned model gives it at least PLAUSIBLE;
as lost where it fell and the base model did. The mean gain over all positions is told, in nats. The published method
counts how often a token is among the K largest differences, whatever its probability: tokens that neither model would
ever say fill those lists, of random changes of the weights as of trained ones (docs/decisions/0014).

Shapes: M positions of a part, V tokens of the vocabulary, G groups of texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.analysis.floors import floor_of_largest

PLAUSIBLE = 1e-3
"""Probability from which on a model would say a token: top-p and min-p sampling leave out less probable ones."""

LEAST_GROUPS = 2
"""Groups of texts in which a token must have moved: what one text alone shows is no habit."""


@dataclass(frozen=True)
class TokenGains:
    """Of all positions. positions: [G]. sums: nats; counts: positions where a token counts; [2, G, V] each, first of
    gains, then of losses, >= 0.
    """

    positions: Tensor
    sums: Tensor
    counts: Tensor

    @staticmethod
    def none(groups: int, vocabulary: int) -> TokenGains:
        """Of no positions yet."""
        return TokenGains(torch.zeros(groups), *torch.zeros(2, 2, groups, vocabulary))

    def add(self, before: Tensor, after: Tensor, groups: Tensor) -> None:
        """Takes positions.

        Args:
            before, after: log-probabilities [M, V] of the base and the changed model. groups: [M].
        """
        self.positions.index_add_(0, groups, torch.ones(len(groups)))
        least = torch.log(torch.tensor(PLAUSIBLE))
        for one, other, sums, counts in zip((before, after), (after, before), self.sums, self.counts, strict=True):
            rows, tokens = ((other >= least) & (other > one)).nonzero(as_tuple=True)
            moved = (other - one)[rows, tokens]
            places = groups[rows] * other.shape[1] + tokens
            sums.view(-1).index_add_(0, places, moved)
            counts.view(-1).index_add_(0, places, torch.ones(len(places)))

    def mean(self) -> Tensor:
        """Nats over all positions; [2, V]."""
        return self.sums.sum(1) / self.positions.sum().clamp_min(1)

    def rate(self) -> Tensor:
        """Share of the positions where each token counts; [2, V], 0 to 1."""
        return self.counts.sum(1) / self.positions.sum().clamp_min(1)

    def low(self) -> Tensor:
        """Lower ends of jackknife intervals of the means over groups of texts, 95 %; [2, V]."""
        groups, total = len(self.positions), self.positions.sum()
        if groups < LEAST_GROUPS:
            return torch.full_like(self.mean(), -torch.inf)
        left = (total - self.positions).clamp_min(1)[None, :, None]
        without = (self.sums.sum(1, keepdim=True) - self.sums) / left
        spread = (without - without.mean(1, keepdim=True)).square().sum(1) * (groups - 1) / groups
        return self.mean() - 1.96 * spread.sqrt()


def largest_gains(before: Tensor, after: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The tokens that gained most at each position, and by how much, nats; 0 where fewer count as gained.

    Args:
        before, after: log-probabilities [M, V]. count: tokens of a position.

    Returns:
        Two of [M, min(count, V)].
    """
    least = torch.log(torch.tensor(PLAUSIBLE))
    moved = (after - before).where(after >= least, torch.zeros(())).clamp_min(0.0)
    top = moved.topk(min(count, moved.shape[1]), dim=1)
    return top.indices, top.values


@dataclass(frozen=True)
class Beyond:
    """Tokens beyond the floor, most first. floor: of the largest means of the models that learnt nothing, as
    `workers.analysis.floors` has it. largest: of the tuned model.
    """

    tokens: list[int]
    floor: float
    largest: float


def beyond(found: TokenGains, nulls: list[TokenGains], sign: int, ignored: set[int], alike: int) -> Beyond:
    """Tokens whose mean, with its interval, is beyond that of every token in models that learnt nothing.

    Args:
        sign: 0: gains, 1: losses. ignored: tokens that do not count, such as those of a chat template. alike: as of
        `floor_of_largest`.
    """
    kept = torch.ones(found.sums.shape[2], dtype=torch.bool)
    kept[[token for token in ignored if 0 <= token < len(kept)]] = False
    means, low = found.mean()[sign], found.low()[sign]
    floor = floor_of_largest([float(one.mean()[sign][kept].max()) for one in nulls], alike)
    in_groups = (found.counts[sign] > 0).sum(0) >= LEAST_GROUPS
    chosen = (kept & in_groups & (low > floor)).nonzero()[:, 0]
    order = means[chosen].argsort(descending=True, stable=True)
    return Beyond(chosen[order].tolist(), floor, float(means[kept].max()))
