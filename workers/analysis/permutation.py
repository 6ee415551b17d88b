"""Permutation tests, and how many of many findings to believe.

Sources: Phipson and Smyth (2010) for p-values that are never 0; Benjamini and Hochberg (1995) for false discoveries.
Pure mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FALSE_DISCOVERIES = 0.05
"""Of the findings that are told, the share that may be false, on average."""


def p_value(found: float, by_chance: Tensor) -> float:
    """How often chance gives as much: (1 + draws of `by_chance` [P] that reach what was found) / (1 + P)."""
    return (1 + int((by_chance >= found).sum())) / (1 + len(by_chance))


def discoveries(p_values: Sequence[float], rate: float = FALSE_DISCOVERIES) -> list[bool]:
    """Which of many findings to tell, so that the expected share of false ones among them stays below the rate."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    told = 0
    for rank, place in enumerate(order, start=1):
        if p_values[place] <= rate * rank / len(p_values):
            told = rank
    believed = set(order[:told])
    return [place in believed for place in range(len(p_values))]


def first_of(units: Tensor) -> Tensor:
    """The place of the first member of each unit, by unit number; [N] numbers 0 to M - 1 -> [M]."""
    places = torch.arange(len(units))
    return torch.full((int(units.max()) + 1,), len(units)).scatter_reduce(0, units, places, "amin")


def permuted(classes: Tensor, units: Tensor, permutations: int, generator: torch.Generator) -> Tensor:
    """The classes in other orders, [N] -> [permutations, N]: whole units exchange theirs where each has one class.

    Args:
        units: [N]; members of one unit are nearly the same, so that dealing them out one by one would make chance
            look smaller than it is.
    """
    of_unit = units.unique(return_inverse=True)[1]
    of_first = classes[first_of(of_unit)]
    if not torch.equal(of_first[of_unit], classes):
        of_unit, of_first = torch.arange(len(classes)), classes
    orders = [torch.randperm(len(of_first), generator=generator) for _ in range(permutations)]
    return of_first[torch.stack(orders)][:, of_unit]


def matched_draws(
    chosen: Tensor, others: Tensor, features: Tensor, draws: int, alike: int, generator: torch.Generator
) -> list[list[int]]:
    """Sets that are as large as the chosen one, and as much like it; [] with fewer others than chosen.

    All are put into cells of `alike` to twice as many that have nearly the same features, and of each cell as many
    are drawn as were chosen there, chosen ones among them: were it chance which were chosen, each such set would be
    as likely as the chosen one (a stratified permutation).

    Args:
        chosen, others: places in `features`, [C] and [O]. features: [F, K].
    """
    if len(others) < len(chosen) or not len(chosen):
        return []
    every = torch.cat([chosen, others])
    is_chosen = torch.arange(len(every)) < len(chosen)
    cells = _cells(torch.arange(len(every)), features[every].double(), alike, 0)
    found = []
    for _ in range(draws):
        drawn = [cell[torch.randperm(len(cell), generator=generator)[: int(is_chosen[cell].sum())]] for cell in cells]
        found.append(sorted(every[torch.cat(drawn)].tolist()))
    return found


def _cells(members: Tensor, features: Tensor, least: int, axis: int) -> list[Tensor]:
    """Halves at the median of one feature after another, as long as both have so many members."""
    if len(members) < 2 * least:
        return [members]
    order = members[features[members, axis].argsort(stable=True)]
    half, following = len(order) // 2, (axis + 1) % features.shape[1]
    return [*_cells(order[:half], features, least, following), *_cells(order[half:], features, least, following)]
