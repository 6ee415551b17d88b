"""The trainer of many autoencoders side by side, against plain dense autograd."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from tests.builders.autoencoders import LATENTS, K, trainer_on
from tests.builders.features import WIDTH, generator, planted
from workers.analysis.sae import DECAY_SHARE, OUTLIER_FACTOR, Architecture, Normalisation, SaeConfig, SaeStack, fit_on
from workers.analysis.sae_training import (
    AUX_WEIGHT,
    CLIP_NORM,
    FIRST_PENALTY,
    THRESHOLD_WINDOW,
    StackTrainer,
    batch_topk,
    fused_adam,
    row_topk,
)


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


@pytest.mark.parametrize(
    ("pre", "kept"),
    [
        ([[-1.0, -2.0], [0.0, -3.0]], []),
        ([[1.0, 1.0], [1.0, 0.5]], [(0, 0), (0, 1), (1, 0)]),
        ([[0.5, -1.0], [-1.0, -1.0]], [(0, 0)]),
    ],
    ids=["nothing is positive", "ties at the last place are all kept", "fewer are positive than asked for"],
)
def test_batch_topk_of_two_in_a_corner_case(pre: list[list[float]], kept: list[tuple[int, int]]) -> None:
    found = batch_topk(torch.tensor(pre), 2)
    assert list(zip(found.rows.tolist(), found.latents.tolist(), strict=True)) == kept


def test_of_more_than_there_are_all_positive_ones_are_kept() -> None:
    pre = torch.tensor([[1.0, -1.0, 2.0]])
    assert batch_topk(pre, 100).latents.tolist() == [0, 2]
    assert row_topk(pre, 100).latents.tolist() == [0, 2]


def test_fused_adam_makes_the_steps_of_torchs_adam() -> None:
    start = torch.randn(5, 3, generator=generator())
    fast, slow = start.clone(), start.clone().requires_grad_()
    optimiser = torch.optim.Adam([slow], lr=0.01)
    first, second = torch.zeros_like(fast), torch.zeros_like(fast)
    for step in range(4):
        gradient = torch.randn(5, 3, generator=generator(step))
        fused_adam([fast], [gradient.clone()], [first], [second], step, 0.01)
        slow.grad = gradient
        optimiser.step()
    torch.testing.assert_close(fast, slow.detach())


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_training_that_is_resumed_ends_bit_by_bit_where_one_without_a_break_does(architecture: Architecture) -> None:
    rows = torch.stack([planted(512, seed=3)[0], planted(512, seed=30)[0] + 0.3])
    config = SaeConfig(LATENTS, K, 12, 128, architecture)

    def fresh(seed: int) -> StackTrainer:
        start = SaeStack.initial(Normalisation.of(rows), LATENTS, generator(seed), K if architecture == "topk" else 0)
        return StackTrainer(start, config, torch.float32)

    def steps(trainer: StackTrainer, first: int, end: int) -> None:
        for step in range(first, end):
            trainer.step(rows[:, torch.randint(512, (128,), generator=generator(step))])

    whole, broken, resumed = fresh(0), fresh(0), fresh(1)
    steps(whole, 0, 12)
    steps(broken, 0, 5)
    saved = list(broken.state())
    steps(broken, 5, 7)  # what was saved is in memory of its own
    resumed.restore(saved)
    assert resumed.done == 5
    steps(resumed, 5, 12)
    for name, tensor in whole.stack.tensors().items():
        assert torch.equal(resumed.stack.tensors()[name], tensor), name
    assert torch.equal(resumed.unexplained, whole.unexplained)
    assert torch.equal(resumed.dead_fraction, whole.dead_fraction)


def test_every_site_is_told_of_after_its_turn_and_may_break_the_step_off() -> None:
    rows = torch.randn(3, 64, WIDTH, generator=generator())
    trainer, seen = trainer_on(rows), []

    def after_site(site: int) -> None:
        seen.append(site)
        if len(seen) == 5:
            raise InterruptedError

    trainer.step(rows, after_site)
    with pytest.raises(InterruptedError):
        trainer.step(rows, after_site)
    assert seen == [0, 1, 2, 0, 1]
    assert trainer.done == 1


def test_before_the_first_span_nothing_is_known_of_the_loss_and_then_it_falls() -> None:
    data = planted(2048, seed=3)[0][None]
    trainer = trainer_on(data, steps=150)
    assert trainer.unexplained.shape == (0, 1)
    for step in range(150):
        trainer.step(data[:, torch.randint(2048, (128,), generator=generator(step))])
    assert len(trainer.unexplained) == 75
    assert float(trainer.unexplained[-1]) < 0.5 * float(trainer.unexplained[0])


class Flat:
    """A loss curve of which it is known whether it has stopped falling."""

    def __init__(self, flat: bool) -> None:
        self.flat = flat


@pytest.mark.parametrize(
    ("flat", "done", "end"),
    [(True, 40, 50), (False, 40, 1000), (True, 900, 1000)],
    ids=["flat", "still falling", "too late to end earlier"],
)
def test_on_a_plateau_the_run_ends_with_its_decay_as_the_last_fifth(
    flat: bool, done: int, end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on(torch.randn(1, 64, WIDTH, generator=generator()), steps=1000)
    monkeypatch.setattr(trainer, "losses", Flat(flat))
    trainer.done = done
    trainer.end_on_plateau()
    assert trainer.end == end
    if end < 1000:
        assert trainer.end - done == pytest.approx(DECAY_SHARE * trainer.end)


@pytest.mark.parametrize("architecture", ["jumprelu", "relu_l1"])
@pytest.mark.parametrize(("k", "direction"), [(1, 1), (LATENTS, -1)])
def test_a_penalty_rises_where_more_latents_are_active_than_wanted_and_falls_where_fewer_are(
    architecture: Architecture, k: int, direction: int
) -> None:
    rows = planted(256, seed=5)[0][None]
    stack = SaeStack.initial(Normalisation.of(rows), LATENTS, generator())
    trainer = StackTrainer(stack, SaeConfig(LATENTS, k, 20, 128, architecture), torch.float32)
    for _ in range(3):
        trainer.step(rows)
    assert direction * (float(trainer._penalty[0]) - FIRST_PENALTY) > 0


def test_thresholds_of_jumprelu_stay_positive() -> None:
    rows = planted(256, seed=5)[0][None]
    stack = SaeStack.initial(Normalisation.of(rows), LATENTS, generator())
    trainer = StackTrainer(stack, SaeConfig(LATENTS, K, 200, 128, "jumprelu"), torch.float32)
    trainer.done = 1  # where thresholds are no longer chosen anew
    stack.threshold[:] = 1e-5
    trainer._penalty[:] = 0.0
    trainer.step(rows)
    assert float(stack.threshold.min()) == 0.0
    assert float(stack.threshold.max()) > 1e-5


def test_a_latent_is_dead_once_it_has_been_silent_for_its_share_of_the_run() -> None:
    rows = planted(128, seed=5)[0][None]
    trainer = trainer_on(rows, steps=40)  # a twentieth of 40 steps of 128 rows: silent in three steps
    trainer.stack.b_enc[0, :16] = -1e6
    shares = []
    for _ in range(4):
        trainer.step(rows)
        shares.append(float(trainer.dead_fraction[0]))
    assert shares[:2] == [0.0, 0.0]
    assert shares[2] >= 16 / LATENTS
