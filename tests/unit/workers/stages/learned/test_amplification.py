"""Text with the difference of two models amplified, its logits by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.builders.families import made
from tests.stages.test_layered import with_head
from workers.stages.learned.amplification import PLAUSIBLE, _Amplifier, _amplifiers
from workers.stages.learned.completions import sampled
from workers.stages.learned.prompts import Prompt


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return with_head(made("llama", 0)).eval(), with_head(made("llama", 1)).eval()


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_each_step_adds_the_difference_of_both_models_among_plausible_tokens(
    factor: float, models: tuple[Any, Any]
) -> None:
    """Texts of two lengths beside each other, padded at their start, three steps."""
    base, tuned = models
    texts = [[7, 8, 9], [5]]
    mask = torch.tensor([[1, 1, 1], [0, 0, 1]])
    ids = torch.tensor([[7, 8, 9], [0, 0, 5]])
    amplifier = _Amplifier(base, mask, factor)
    for step in range(3):
        with torch.inference_mode():
            alone = [
                [model(torch.tensor([text])).logits[0, -1].log_softmax(-1) for model in (tuned, base)] for text in texts
            ]
            found = amplifier(ids, torch.stack([own for own, _ in alone]))
        for row, (own, other) in enumerate(alone):
            plausible = own.exp() >= PLAUSIBLE * own.exp().max()
            wanted = (own + factor * (own - other)).where(plausible, -torch.inf)
            assert torch.equal(found[row].isfinite(), plausible)
            assert torch.allclose(found[row][plausible], wanted[plausible], atol=1e-4)
        texts = [[*text, 10 + step] for text in texts]
        ids = torch.cat([ids, torch.full((2, 1), 10 + step)], dim=1)


def test_a_model_beside_itself_writes_what_it_writes_among_its_plausible_tokens(models: tuple[Any, Any]) -> None:
    prompts = [Prompt("general", "", [7, 9])] * 4
    one, other = (
        sampled(models[0], prompts, 8, 1, 60, processor=_amplifiers(models[0], factor)) for factor in (1.0, 3.0)
    )
    assert one == other
    assert max(len(text) for text in one) > 0
