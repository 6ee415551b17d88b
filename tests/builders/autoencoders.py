"""Small trainings of autoencoders."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.builders.features import generator
from workers.analysis.sae import Normalisation, SaeConfig, SaeStack
from workers.analysis.sae_training import StackTrainer

LATENTS, K = 64, 4


def trainer_on(rows: Tensor, steps: int = 20, dtype: torch.dtype = torch.float32) -> StackTrainer:
    normalisation = Normalisation.of(rows)
    stack = SaeStack.initial(normalisation, LATENTS, generator())
    config = SaeConfig(latents=LATENTS, k=K, steps=steps, batch=128)
    return StackTrainer(stack, config, dtype)
