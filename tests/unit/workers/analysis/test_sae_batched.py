"""The trainer of all sites at once, which a GPU uses: here on the CPU, against the one that takes sites in turn."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.builders.autoencoders import LATENTS, K
from tests.builders.features import WIDTH, generator, planted
from workers.analysis.sae import OUTLIER_FACTOR, Architecture, Normalisation, SaeConfig, SaeStack, fit_on
from workers.analysis.sae_batched import DEAD_CHECK_STEPS, BatchedTrainer
from workers.analysis.sae_training import StackTrainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_all_sites_at_once_learn_what_they_learn_in_turn(architecture: Architecture, dtype: torch.dtype) -> None:
    """The GPU's trainer, here on the CPU; rows of outlying norm differ in number between the sites."""
    rows = torch.stack([planted(2048, seed=3)[0], planted(2048, seed=30)[0] + 0.3])
    rows[0, ::500] *= 10 * OUTLIER_FACTOR
    held_out = planted(2048, seed=4)[0]
    config = SaeConfig(latents=LATENTS, k=K, steps=60, batch=128, architecture=architecture)
    normalisation = Normalisation.of(rows)
    trainers = []
    for kind in (StackTrainer, BatchedTrainer):
        start = SaeStack.initial(normalisation, LATENTS, generator(), row_k=K if architecture == "topk" else 0)
        trainers.append(kind(start, config, dtype))
    for step in range(config.steps):
        batch = rows[:, torch.randint(2048, (128,), generator=generator(step))]
        for trainer in trainers:
            trainer.step(batch)
        if step == 3 and dtype is torch.float32:
            for name, tensor in trainers[0].stack.tensors().items():
                torch.testing.assert_close(trainers[1].stack.tensors()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    one, other = trainers
    assert torch.equal(one.outlier_share, other.outlier_share)
    assert float(one.outlier_share[0]) > float(one.outlier_share[1]) == 0.0
    torch.testing.assert_close(one.dead_fraction, other.dead_fraction, rtol=0, atol=0.05)
    fits = [fit_on(trainer.stack, 1, [held_out + 0.3]).fvu for trainer in trainers]
    assert fits[1] == pytest.approx(fits[0], rel=0.01 if architecture in ("batch_topk", "topk") else 0.03)


@pytest.mark.parametrize("dead_latents", [0, 3, 40])
def test_all_sites_at_once_revive_the_same_dead_latents(dead_latents: int) -> None:
    rows = torch.randn(2, 128, WIDTH, generator=generator(1)) + 0.5
    stacks = []
    for kind in (StackTrainer, BatchedTrainer):
        stack = SaeStack.initial(Normalisation.of(rows), LATENTS, generator())
        trainer = kind(stack, SaeConfig(latents=LATENTS, k=K, steps=20, batch=128), torch.float32)
        trainer._silent_for[1, :dead_latents] = 1e9
        trainer.step(rows)
        stacks.append(stack)
    torch.testing.assert_close(stacks[0].W_enc, stacks[1].W_enc, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(stacks[0].W_dec, stacks[1].W_dec, rtol=1e-3, atol=1e-5)


def test_a_state_of_one_trainer_is_gone_on_from_by_the_other() -> None:
    rows = torch.stack([planted(512, seed=3)[0], planted(512, seed=30)[0] + 0.3])
    config = SaeConfig(LATENTS, K, 10, 128)

    def fresh(kind: type[StackTrainer]) -> StackTrainer:
        return kind(SaeStack.initial(Normalisation.of(rows), LATENTS, generator()), config, torch.float32)

    first, whole, other = fresh(BatchedTrainer), fresh(StackTrainer), fresh(StackTrainer)
    for trainer in (first, whole):
        trainer.step(rows[:, :128])
    other.restore(first.state())
    for trainer in (whole, other):
        trainer.step(rows[:, 128:256])
    torch.testing.assert_close(other.stack.W_dec, whole.stack.W_dec, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(other.stack.threshold, whole.stack.threshold, rtol=1e-3, atol=1e-5)


def test_the_last_site_is_told_of_once_after_each_step() -> None:
    rows = torch.randn(3, 64, WIDTH, generator=generator())
    stack = SaeStack.initial(Normalisation.of(rows), LATENTS, generator())
    trainer = BatchedTrainer(stack, SaeConfig(LATENTS, K, 20, 64), torch.float32)
    seen: list[int] = []
    for _ in range(2):
        trainer.step(iter(rows), seen.append)
    assert seen == [2, 2]
    assert trainer.done == 2


def test_decoder_rows_stay_at_unit_norm_at_every_site() -> None:
    rows = torch.randn(2, 64, WIDTH, generator=generator())
    stack = SaeStack.initial(Normalisation.of(rows), LATENTS, generator())
    trainer = BatchedTrainer(stack, SaeConfig(LATENTS, K, 20, 64), torch.float32)
    for _ in range(5):
        trainer.step(rows)
    torch.testing.assert_close(stack.W_dec.norm(dim=-1), torch.ones(2, LATENTS))


class Waits(TorchDispatchMode):
    """Counts what a GPU's host would wait for: a number that is asked for, and places that are looked up."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "unique")):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_step_waits_for_the_device_only_where_it_looks_for_dead_latents(architecture: Architecture) -> None:
    rows = torch.randn(2, 128, WIDTH, generator=generator(1)) + 0.5
    stack = SaeStack.initial(Normalisation.of(rows), LATENTS, generator(), row_k=K if architecture == "topk" else 0)
    config = SaeConfig(latents=LATENTS, k=K, steps=200, batch=128, architecture=architecture)
    trainer = BatchedTrainer(stack, config, torch.float32)
    waited = []
    for step in range(2 * DEAD_CHECK_STEPS):
        with Waits() as waits:
            trainer.step(rows)
        waited.append(len(waits.seen))
        assert trainer.done == step + 1
    assert [step for step, count in enumerate(waited) if count] == [0, DEAD_CHECK_STEPS]
    assert max(waited) == 1
