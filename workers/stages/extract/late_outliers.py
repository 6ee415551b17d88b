"""Which tokens are outliers, as layer after layer tells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from workers.analysis.moments import NotFinite
from workers.models.inliers import Inliers, limit_of, without, without_first
from workers.models.texts import Batch
from workers.stages.extract.layer_walk import LayerStates


class LateOutliers:
    """Which tokens are outliers, as far as the layers so far have told; [B, T] bool by batch.

    Args:
        settled_by: so many of the first batches settle what the norm of an inlier is at most.
    """

    def __init__(self, batches: Sequence[Batch], causal: bool, settled_by: int) -> None:
        self.latest = 0
        self.limits: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._batches = batches
        self._causal = causal
        self._settled_by = settled_by
        self._found = [torch.zeros_like(batch.real) for batch in batches]

    def look(self, states: LayerStates) -> None:
        """Takes the outliers of a layer; `latest` is the last layer where there was a new one.

        Raises:
            InputError: a state is NaN or infinite.
        """
        self._require_finite(states)
        before = sum(int(found.sum()) for found in self._found)
        for limits, side in zip(self.limits, (states.base, states.tuned), strict=True):
            first = zip(self._batches[: self._settled_by], side, strict=False)
            limit = limit_of([state.cpu().float()[without_first(one.real, self._causal)] for one, state in first])
            limits.append(limit)
            for batch, found, state in zip(self._batches, self._found, side, strict=True):
                found |= (state.float().norm(dim=-1) > limit.to(state.device)).cpu() & batch.attention_mask.bool()
        if sum(int(found.sum()) for found in self._found) > before:
            self.latest = states.layer

    def _require_finite(self, states: LayerStates) -> None:
        for name, side in (("base", states.base), ("tuned", states.tuned)):
            for batch, state in zip(self._batches, side, strict=True):
                if not bool(state[batch.real.to(state.device)].isfinite().all()):
                    raise InputError.at(f"/{name}/uri", str(NotFinite(name, states.layer)))

    def judged(self, number: int) -> Batch:
        """A batch without its outliers."""
        return without(self._batches[number], self._found[number], self._causal)

    def rule(self) -> Inliers:
        """The rule of all layers, which remembers what it left out."""
        rule = Inliers(self._causal, *(torch.stack(limits) for limits in self.limits))
        for batch, found in zip(self._batches, self._found, strict=True):
            rule.remember(batch, found)
        return rule
