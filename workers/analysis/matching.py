"""What became of one dictionary's latents in another: by index after a warm start, or by the best assignment.

Pure mathematics on decoder rows of unit norm and firing rates. Thresholds are fixed; what chance gives is counted by
the same rules on a floor, and stands beside every count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ALIVE_SHARE = 0.1
"""A latent is alive when it fires at least this share as often as the mean one; rarer ones come and go by chance."""

RETAINED_COSINE, KEPT_COSINE = 0.9, 0.5
"""From the first on a latent's direction counts as the same; below the second, as another one."""

CHANCE_DEVIATIONS = 2.0
"""By how many standard deviations a count must exceed its floor to be more than chance."""

KNOWN_COSINE = 0.7
"""A direction that has at least this cosine with one of the other dictionary's is known there."""


@dataclass(frozen=True)
class Fates:
    """What became of the latents of a dictionary that was trained on; all [F].

    retained, shifted, lost: bool, those that were alive before. new: bool, those alive after whose direction nothing
    alive had before; a latent can be lost or shifted and new. alive: bool, after. cosines: of the decoder rows.
    """

    retained: Tensor
    shifted: Tensor
    lost: Tensor
    new: Tensor
    alive: Tensor
    cosines: Tensor


def beyond_floor(count: int, floor: int) -> bool:
    """Whether so many latents are more than the floor and chance explain: by over two deviations of such a difference.

    Both are taken for Poisson counts, whose difference has the variance count + floor.
    """
    return count - floor > CHANCE_DEVIATIONS * math.sqrt(count + floor)


def fates_of(before: Tensor, after: Tensor, rates_before: Tensor, rates_after: Tensor) -> Fates:
    """Of a warm start, where latent j is the same before and after.

    Args:
        before, after: decoder rows of unit norm, [F, D].
        rates_before, rates_after: shares of the tokens that the latents fire on, [F].
    """
    alive_before = _alive(rates_before)
    alive_after = rates_after >= ALIVE_SHARE * rates_before.mean()
    cosines = (before * after).sum(1)
    stayed = alive_before & alive_after
    retained = stayed & (cosines >= RETAINED_COSINE)
    shifted = stayed & (cosines >= KEPT_COSINE) & ~retained
    return Fates(
        retained=retained,
        shifted=shifted,
        lost=alive_before & ~retained & ~shifted,
        new=alive_after & ~_known(after, before[alive_before]),
        alive=alive_after,
        cosines=cosines,
    )


def _alive(rates: Tensor) -> Tensor:
    alive: Tensor = (rates > 0) & (rates >= ALIVE_SHARE * rates.mean())
    return alive


def _known(rows: Tensor, dictionary: Tensor) -> Tensor:
    """Which rows [F, D] have a like among those of the dictionary [G, D]; [F] bool."""
    if not len(dictionary):
        return torch.zeros(len(rows), dtype=torch.bool)
    known: Tensor = (rows @ dictionary.T).amax(1) >= KNOWN_COSINE
    return known


@dataclass(frozen=True)
class Matching:
    """Two dictionaries that were trained apart, assigned one to one.

    matched_share: of the first one's living latents, those whose partner has a cosine of KNOWN_COSINE or more, 0 to 1.
    mean_cosine: over all assigned pairs, -1 to 1. latents: living ones of the first.
    """

    matched_share: float
    mean_cosine: float
    latents: int


def matching(one: Tensor, other: Tensor, rates_one: Tensor, rates_other: Tensor) -> Matching | None:
    """The assignment of living latents with the largest sum of cosines (Hungarian); None where none is alive.

    Args:
        one, other: decoder rows of unit norm, [F, D].
        rates_one, rates_other: as in `fates_of`.
    """
    alive, others = (rows[_alive(rates)] for rows, rates in ((one, rates_one), (other, rates_other)))
    cosines = alive @ others.T
    if not cosines.numel():
        return None
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    assigned = cosines[torch.from_numpy(rows), torch.from_numpy(columns)]
    return Matching(
        matched_share=float((assigned >= KNOWN_COSINE).sum()) / len(alive),
        mean_cosine=float(assigned.mean()),
        latents=len(alive),
    )
