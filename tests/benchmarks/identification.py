"""`make bench-identification`: how much of a dictionary comes again from another seed, by width, k and steps.

What decision 0011 rests on. The last line printed is JSON.
"""

from __future__ import annotations

import json
import statistics
from typing import NamedTuple

import torch
from torch import Tensor

from tests.benchmarks.document import publish
from tests.benchmarks.measures import Setting
from workers.analysis.matching import matching
from workers.analysis.sae import Normalisation, SaeConfig, SaeFit, SaeStack, fit_on
from workers.analysis.sae_training import StackTrainer
from workers.models.states import hidden_states
from workers.stages.common.moment_accumulator import token_rows

LAYERS = (1, 4)
TRAIN_ROWS, HELDOUT_ROWS, BATCH = 70_000, 10_000, 2048
SEEDS = (0, 1)
SETTINGS = (
    (8, 32, 250), (4, 32, 250), (2, 32, 250), (1, 32, 250), (2, 16, 250), (2, 16, 1_000), (8, 8, 250), (4, 8, 250),
    (4, 8, 1_000), (2, 8, 250), (1, 8, 250), (2, 4, 250),
)  # fmt: skip
"""Width as a multiple of the hidden one, k, and optimiser steps."""


class Identified(NamedTuple):
    """Of one layer: held-out FVU, mean of the seeds, and the share of living latents with a partner in the other."""

    fvu: float
    partners: float


def main() -> None:
    """Prints and publishes the figures."""
    train, heldout = _activations()
    found = {}
    for width, k, steps in SETTINGS:
        layers = identified(train, heldout, SaeConfig(width * train.shape[2], k, steps, BATCH))
        found[f"{width} x, k {k}, {steps} steps"] = layers
        said = "   ".join(
            f"layer {layer}: FVU {one.fvu:.3f}, partners {one.partners:.1%}"
            for layer, one in zip(LAYERS, layers, strict=True)
        )
        print(f"width {width}, k {k}, {steps} steps   {said}", flush=True)
    _publish(found)
    print(json.dumps({name: [one._asdict() for one in layers] for name, layers in found.items()}))


def _activations() -> tuple[Tensor, Tensor]:
    """Rows of the base model at LAYERS in random order, to train on and held out; [S, N, D] each."""
    setting = Setting(TRAIN_ROWS + HELDOUT_ROWS)
    parts = [
        token_rows(hidden_states(setting.base, batch), batch)[list(LAYERS)]
        for _, batch in setting.tokenization.grouped(setting.texts)
    ]
    rows = torch.cat(parts, 1)
    rows = rows[:, torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))]
    return rows[:, HELDOUT_ROWS:], rows[:, :HELDOUT_ROWS]


def identified(train: Tensor, heldout: Tensor, config: SaeConfig) -> list[Identified]:
    """One autoencoder for each layer and seed; how they are on held-out rows, and how many latents find a partner."""
    fits, stacks = [], []
    for seed in SEEDS:
        stack = _trained(train, config, seed)
        stacks.append(stack)
        fits.append([fit_on(stack, site, heldout[site].split(BATCH)) for site in range(stack.sites)])
    return [_identified(site, stacks, fits) for site in range(len(train))]


def _trained(rows: Tensor, config: SaeConfig, seed: int) -> SaeStack:
    generator = torch.Generator().manual_seed(seed)
    stack = SaeStack.initial(Normalisation.of(rows[:, :BATCH]), config.latents, generator)
    trainer = StackTrainer(stack, config, torch.float32)
    for _ in range(config.steps):
        drawn = torch.randint(rows.shape[1], (config.batch,), generator=generator)
        trainer.step([site[drawn] for site in rows])
    return stack


def _identified(site: int, stacks: list[SaeStack], fits: list[list[SaeFit]]) -> Identified:
    one, other = (stack.W_dec[site] for stack in stacks)
    match = matching(one, other, *(of_seed[site].firing_rates for of_seed in fits))
    fvu = statistics.mean(of_seed[site].fvu for of_seed in fits)
    return Identified(round(fvu, 4), round(match.matched_share if match else 0.0, 4))


def _publish(found: dict[str, list[Identified]]) -> None:
    lines = [
        f"| {name} | " + " | ".join(f"{one.fvu:.3f} | {one.partners:.1%}" for one in layers) + " |"
        for name, layers in found.items()
    ]
    heads = " | ".join(f"FVU, layer {layer} | partners" for layer in LAYERS)
    publish(
        "Identified latents (`make bench-identification`)",
        f"""
All-MiniLM-L6-v2, {TRAIN_ROWS:,} tokens of movie reviews, BatchTopK, batches of {BATCH:,}. Width is a multiple of the
hidden width (384). FVU on {HELDOUT_ROWS:,} other tokens, mean of two seeds; partners, the share of living latents whose
partner in the dictionary from the other seed has a cosine of 0.7 or more.

| width, k, steps | {heads} |
|---|---|---|---|---|
"""
        + "\n".join(lines),
    )


if __name__ == "__main__":
    main()
