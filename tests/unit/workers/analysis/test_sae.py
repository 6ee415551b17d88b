from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from tests.builders.features import WIDTH, generator, planted
from workers.analysis.sae import OUTLIER_FACTOR, Architecture, Normalisation, SaeConfig, SaeStack, fit_on
from workers.analysis.sae_batched import BatchedTrainer
from workers.analysis.sae_training import AUX_WEIGHT, CLIP_NORM, THRESHOLD_WINDOW, StackTrainer, batch_topk, row_topk

LATENTS, K = 64, 4


def naive_batch_topk(pre: Tensor, count: int) -> Tensor:
    """The same by sorting everything: pre-activations with all but the `count` largest positive ones at zero."""
    flat = pre.relu().flatten()
    top = flat.topk(min(count, flat.numel()))
    return torch.zeros_like(flat).scatter_(0, top.indices, top.values).reshape(pre.shape)


def dense(kept_rows: Tensor, kept_latents: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.zeros(shape).index_put_((kept_rows, kept_latents), values)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shift", [0.0, -2.0, -10.0])
def test_batch_topk_keeps_what_sorting_everything_keeps(seed: int, shift: float) -> None:
    pre = torch.randn(64, 100, generator=generator(seed)) + shift
    kept = batch_topk(pre, 64 * 5)
    assert torch.equal(dense(kept.rows, kept.latents, kept.values, (64, 100)), naive_batch_topk(pre, 64 * 5))
    assert torch.equal(kept.starts, torch.cat([torch.zeros(1), kept.rows.bincount(minlength=64).cumsum(0)]).long())


def test_batch_topk_is_exact_where_the_sampled_rows_mislead() -> None:
    pre = torch.rand(64, 50, generator=generator())
    pre[::16] += 100.0
    kept = batch_topk(pre, 300)
    assert torch.equal(dense(kept.rows, kept.latents, kept.values, (64, 50)), naive_batch_topk(pre, 300))


def test_row_topk_keeps_what_sorting_each_row_keeps() -> None:
    pre = torch.randn(64, 100, generator=generator()) - 1.5
    kept = row_topk(pre, 5)
    top = pre.relu().topk(5, dim=1)
    expected = torch.zeros_like(pre).scatter_(1, top.indices, top.values)
    assert torch.equal(dense(kept.rows, kept.latents, kept.values, (64, 100)), expected)
    assert torch.equal(kept.starts, torch.cat([torch.zeros(1), (expected > 0).sum(1).cumsum(0)]).long())


class NaiveSae(nn.Module):
    """One autoencoder in plain dense float32 autograd: the judge of the fast one."""

    def __init__(self, stack: SaeStack, site: int) -> None:
        super().__init__()
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = (
            nn.Parameter(tensor[site].clone()) for tensor in (stack.W_enc, stack.W_dec, stack.b_enc, stack.b_dec)
        )

    def loss(self, x: Tensor, k: int, dead: Tensor) -> Tensor:
        pre = (x - self.b_dec) @ self.W_enc.T + self.b_enc
        latents = pre * (naive_batch_topk(pre.detach(), k * len(x)) > 0)
        rebuilt = latents @ self.W_dec + self.b_dec
        loss = (rebuilt - x).square().sum() / len(x)
        if bool(dead.any()):
            residual = (x - rebuilt).detach()
            centred = x - self.b_dec.detach()
            dead_pre = (centred @ self.W_enc[dead].T + self.b_enc[dead]).relu()
            top = dead_pre.topk(min(WIDTH // 2, int(dead.sum())), dim=1)
            strongest = torch.zeros_like(dead_pre).scatter(1, top.indices, top.values)
            loss = loss + AUX_WEIGHT * (strongest @ self.W_dec[dead] - residual).square().sum() / len(x)
        return loss

    def gradients(self) -> list[Tensor]:
        parameters = (self.W_enc, self.W_dec, self.b_enc, self.b_dec)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]


def trainer_on(rows: Tensor, steps: int = 20, dtype: torch.dtype = torch.float32) -> StackTrainer:
    normalisation = Normalisation.of(rows)
    stack = SaeStack.initial(normalisation, LATENTS, generator())
    config = SaeConfig(latents=LATENTS, k=K, steps=steps, batch=128)
    return StackTrainer(stack, config, dtype)


@pytest.mark.parametrize("dead_latents", [0, 3, 40])
def test_gradients_written_by_hand_are_those_of_autograd(dead_latents: int) -> None:
    rows = torch.randn(2, 128, WIDTH, generator=generator(1)) + 0.5
    trainer = trainer_on(rows)
    trainer.stack.b_enc += 0.01 * torch.randn(2, LATENTS, generator=generator(2))
    trainer._silent_for[1, :dead_latents] = 1e9
    x = rows[1] / trainer.stack.scale[1]
    centred = x - trainer.stack.b_dec[1]
    found = trainer._gradients(1, x, centred, trainer._keep(1, centred))
    naive = NaiveSae(trainer.stack, 1)
    naive.loss(x, K, trainer._silent_for[1] > trainer.config.dead_after).backward()
    for name, fast, slow in zip(("W_enc", "W_dec", "b_enc", "b_dec"), found, naive.gradients(), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("architecture", ["relu_l1", "jumprelu"])
def test_gradients_of_penalised_architectures_are_those_of_autograd(architecture: Architecture) -> None:
    """The thresholds' gradient, which autograd does not know, is held against its definition in loops."""
    rows = torch.randn(1, 128, WIDTH, generator=generator(1)) + 0.5
    stack = SaeStack.initial(Normalisation.of(rows), LATENTS, generator())
    trainer = StackTrainer(stack, SaeConfig(LATENTS, K, 20, 128, architecture), torch.float32)
    trainer._penalty[0] = 0.05
    if architecture == "jumprelu":
        stack.threshold += 0.1
    x = rows[0] / stack.scale[0]
    centred = x - stack.b_dec[0]
    found, fired = trainer._penalised_gradients(0, x, centred, trainer._pre_activations(0, centred))
    W_enc, W_dec, b_enc, b_dec = parameters = [
        tensor[0].clone().requires_grad_() for tensor in (stack.W_enc, stack.W_dec, stack.b_enc, stack.b_dec)
    ]
    pre = (x - b_dec) @ W_enc.T + b_enc
    latents = pre * (pre > stack.threshold[0])
    latents.retain_grad()
    loss = (latents @ W_dec + b_dec - x).square().sum() / len(x)
    if architecture == "relu_l1":
        loss = loss + 0.05 * latents.sum() / len(x)
    loss.backward()
    for fast, slow in zip(found, parameters, strict=False):
        assert slow.grad is not None
        torch.testing.assert_close(fast, slow.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(fired, (latents > 0).any(0).nonzero()[:, 0])
    if architecture == "jumprelu":
        expected = torch.zeros(LATENTS)
        for row in range(len(x)):
            for latent in range(LATENTS):
                if abs(float(pre.detach()[row, latent]) - 0.1) < THRESHOLD_WINDOW / 2:
                    slope = 0.1 * float(latents.grad[row, latent]) + 0.05 / len(x)  # type: ignore[index]
                    expected[latent] -= slope / THRESHOLD_WINDOW
        torch.testing.assert_close(found[4], expected, rtol=1e-3, atol=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fast_run_ends_where_a_naive_one_does(dtype: torch.dtype) -> None:
    """The same data and start through torch.optim.Adam and autograd in float32: held-out FVU within 1 %."""
    data = planted(4096, seed=3)[0]
    rows = data[None]
    fast = trainer_on(rows, steps=60, dtype=dtype)
    naive = NaiveSae(fast.stack, 0)
    optimiser = torch.optim.Adam(naive.parameters(), lr=1.0)
    silent_for, threshold = torch.zeros(LATENTS), torch.zeros(1)
    for step in range(60):
        batch = data[torch.randint(4096, (128,), generator=generator(100 + step))]
        x = batch / fast.stack.scale[0]
        fast.step(batch[None])
        optimiser.zero_grad()
        naive.loss(x, K, silent_for > fast.config.dead_after).backward()
        with torch.no_grad():
            gradient = naive.W_dec.grad
            assert gradient is not None
            gradient -= (gradient * naive.W_dec).sum(1, keepdim=True) * naive.W_dec
            nn.utils.clip_grad_norm_(naive.parameters(), CLIP_NORM)
            optimiser.param_groups[0]["lr"] = fast.config.rate_at(step)
            kept = naive_batch_topk((x - naive.b_dec) @ naive.W_enc.T + naive.b_enc, K * 128)
            fired, smallest = kept.gt(0).any(0), kept[kept > 0].min()
            memory = fast.config.threshold_memory if step else 0.0
            threshold = memory * threshold + (1 - memory) * smallest
            optimiser.step()
            naive.W_dec.div_(naive.W_dec.norm(dim=1, keepdim=True))
            silent_for = torch.where(fired, 0.0, silent_for + 128)
    W_enc, W_dec, b_enc, b_dec = (
        parameter.detach()[None] for parameter in (naive.W_enc, naive.W_dec, naive.b_enc, naive.b_dec)
    )
    slow = SaeStack(W_enc, W_dec, b_enc, b_dec, fast.stack.scale, fast.stack.norm_limit, threshold.expand(1, LATENTS))
    held_out = planted(2048, seed=4)[0]
    assert fit_on(fast.stack, 0, [held_out]).fvu == pytest.approx(fit_on(slow, 0, [held_out]).fvu, rel=0.01)


def test_decoder_rows_stay_at_unit_norm() -> None:
    data = planted(1024, seed=7)[0][None]
    trainer = trainer_on(data)
    for _ in range(10):
        trainer.step(data[:, :128])
    torch.testing.assert_close(trainer.stack.W_dec.norm(dim=-1), torch.ones(1, LATENTS))


def test_rows_of_outlying_norm_are_left_out_and_counted() -> None:
    data = planted(1024, seed=8)[0][None]
    clean, dirty = trainer_on(data), trainer_on(data)
    batch = data[:, :128]
    clean.step(batch)
    dirty.step(torch.cat([batch, batch[:, :2] * OUTLIER_FACTOR * 10], dim=1))
    assert dirty.outlier_share.tolist() == pytest.approx([2 / 130])
    assert clean.outlier_share.tolist() == [0.0]
    assert (
        dirty.stack.inliers(0, torch.cat([batch, batch * OUTLIER_FACTOR * 10], dim=1)[0]).tolist()
        == [True] * 128 + [False] * 128
    )
    torch.testing.assert_close(dirty.stack.W_dec, clean.stack.W_dec)


def test_the_mean_alone_leaves_all_variance_and_a_perfect_code_none() -> None:
    data = torch.randn(500, 2, generator=generator(9))
    stack = SaeStack(
        W_enc=torch.tensor([[[1.0, 0], [-1, 0], [0, 1], [0, -1]]]),
        W_dec=torch.tensor([[[1.0, 0], [-1, 0], [0, 1], [0, -1]]]),
        b_enc=torch.zeros(1, 4),
        b_dec=torch.zeros(1, 2),
        scale=torch.ones(1),
        norm_limit=torch.full((1,), 1e9),
        threshold=torch.zeros(1, 4),
    )
    perfect = fit_on(stack, 0, data.split(100))
    torch.testing.assert_close(perfect.mean, data.double().mean(0))
    assert perfect.fvu == pytest.approx(0.0, abs=1e-10)
    assert perfect.l0 == pytest.approx(2.0)
    stack.threshold += 1e9
    stack.b_dec[0] = data.mean(0)
    assert fit_on(stack, 0, data.split(100)).fvu == pytest.approx(1.0, abs=1e-5)


def test_rows_that_do_not_vary_have_no_fvu() -> None:
    stack = trainer_on(planted(1024, seed=1)[0][None]).stack
    with pytest.raises(ValueError, match="have no variance"):
        fit_on(stack, 0, [torch.ones(10, WIDTH)])
    with pytest.raises(ValueError, match="0 rows"):
        fit_on(stack, 0, [])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": LATENTS + 1}, {"steps": 0}, {"batch": 1}])
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SaeConfig(**{"latents": LATENTS, "k": K, "steps": 10, **wrong})
