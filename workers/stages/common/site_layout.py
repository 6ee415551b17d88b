"""Which site of a stack of autoencoders, and of the rows that they are trained on, is which layer of which model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SiteLayout:
    """The order of sites: the base model's layers, the tuned model's, and where `again` the base model's once more.

    layers: L + 1. Rows are stored for the first two parts; the third reads the first one's.
    """

    layers: int
    again: bool = False

    @classmethod
    def of_pair(cls, sites: int) -> SiteLayout:
        """Of stored rows with so many sites; ValueError where that is no pair's."""
        if sites % 2:
            raise ValueError(f"{sites} sites are not those of two models with equally many layers")
        return cls(sites // 2)

    @property
    def sites(self) -> int:
        """How many there are."""
        return self.layers * (3 if self.again else 2)

    @property
    def base_sites(self) -> list[int]:
        """Of the base model, by layer."""
        return [self.base(layer) for layer in range(self.layers)]

    @property
    def tuned_sites(self) -> list[int]:
        """Of the tuned model, by layer."""
        return [self.tuned(layer) for layer in range(self.layers)]

    def base(self, layer: int) -> int:
        """The base model's layer."""
        return layer

    def tuned(self, layer: int) -> int:
        """The tuned model's layer."""
        return self.layers + layer

    def base_again(self, layer: int) -> int:
        """The base model's layer in the third part; ValueError where there is none."""
        if not self.again:
            raise ValueError("this layout has no second set for the base model")
        return 2 * self.layers + layer

    def layer(self, site: int) -> int:
        """Of a site of any part."""
        return site % self.layers

    def of_tuned(self, site: int) -> bool:
        """Whether a site is the tuned model's."""
        return site // self.layers == 1


def joined(base: Tensor, tuned: Tensor) -> Tensor:
    """Something of every layer of both models, [L + 1, …] each, in the layout's order."""
    return torch.cat([base, tuned])
