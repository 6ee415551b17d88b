"""Autoencoders find the features that were put into the data."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tests.builders.features import generator, planted
from workers.analysis.sae import Architecture, Normalisation, SaeConfig, SaeStack, fit_on
from workers.analysis.sae_training import StackTrainer

LARGEST_FVU: dict[Architecture, float] = {"batch_topk": 0.15, "topk": 0.15, "jumprelu": 0.2, "relu_l1": 0.7}
"""An L1 penalty that leaves three latents active also shrinks them: that is its known flaw."""


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_planted_dictionary_is_recovered(architecture: Architecture) -> None:
    data, dictionary = planted(20_000, seed=5)
    normalisation = Normalisation.of(data[None])
    stack = SaeStack.initial(normalisation, 64, generator(), row_k=3 if architecture == "topk" else 0)
    config = SaeConfig(latents=64, k=3, steps=600, batch=256, architecture=architecture)
    trainer = StackTrainer(stack, config, torch.float32)
    for step in range(config.steps):
        trainer.step(data[torch.randint(len(data), (256,), generator=generator(step))][None])
    best = (dictionary @ stack.W_dec[0].T).max(dim=1).values
    fit = fit_on(stack, 0, [planted(4096, seed=6)[0]])
    assert float(best.mean()) >= 0.9
    assert fit.fvu < LARGEST_FVU[architecture]
    assert fit.l0 == pytest.approx(3.0, rel=0.15)
