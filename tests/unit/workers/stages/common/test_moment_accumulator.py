from __future__ import annotations

import pytest
import torch

from workers.models.texts import Batch
from workers.stages.common.moment_accumulator import batch_rows


@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_a_batch_are_those_that_the_mask_tells(causal: bool) -> None:
    """Against plain indexing; the second text has no real token, and the states are a view with strides of its own."""
    generator = torch.Generator().manual_seed(0)
    states = list(torch.randn(2, 5, 4, 7, generator=generator).transpose(1, 2))
    attended = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    real = attended.bool()
    real[:, 0] = real[1] = False
    found = batch_rows(states, Batch(attended, attended, real, [0, 1, 2, 3]), causal)
    kept = [0, 2, 3]
    last = [3, 4, 2] if causal else [0, 0, 0]
    for layer, state in enumerate(states):
        torch.testing.assert_close(found.tokens[layer], state[real], rtol=0, atol=0)
        torch.testing.assert_close(found.cls[layer], state[kept, last], rtol=0, atol=0)
        expected = torch.stack([state[text][real[text]].mean(0) for text in kept])
        torch.testing.assert_close(found.mean[layer], expected)
