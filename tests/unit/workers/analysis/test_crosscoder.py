from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workers.analysis.crosscoder import crosscoder_fit, relative_norms, side_by_side, specific_latents
from workers.analysis.sae import Normalisation, SaeConfig, SaeStack
from workers.analysis.sae_training import StackTrainer

WIDTH, ATOMS, NEW, LOST, LATENTS = 32, 64, 6, 4, 192


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(rows: int, seed: int, changed: bool = True) -> Tensor:
    """Rows of two models side by side that share a dictionary, but for NEW atoms of one and LOST ones of the other."""
    atoms = nn.functional.normalize(torch.randn(ATOMS + NEW, WIDTH, generator=generator(99)), dim=1)
    on = torch.rand(rows, ATOMS + NEW, generator=generator(seed)) < 0.06
    strengths = on * (0.5 + torch.rand(rows, ATOMS + NEW, generator=generator(seed + 1)))
    base, tuned = strengths.clone(), strengths.clone()
    base[:, ATOMS:] = 0.0
    if changed:
        tuned[:, :LOST] = 0.0
    else:
        tuned = base
    noise = 0.02 * torch.randn(2, rows, WIDTH, generator=generator(seed + 2))
    pair = base @ atoms + noise[0], tuned @ atoms + noise[1]
    return side_by_side(*pair, (torch.tensor(1.5), torch.tensor(1.5)))


def trained(rows: Tensor, steps: int) -> SaeStack:
    stack = SaeStack.initial(Normalisation.of(rows[None]), LATENTS, generator())
    trainer = StackTrainer(stack, SaeConfig(latents=LATENTS, k=5, steps=steps, batch=512), torch.float32)
    for step in range(steps):
        trainer.step(rows[torch.randint(len(rows), (512,), generator=generator(step))][None])
    return stack


def test_planted_atoms_of_one_model_come_out_and_no_others() -> None:
    fit = crosscoder_fit(trained(planted(40_000, 1), 800), 0, planted(8000, 7).split(2000))
    found = specific_latents(fit)
    assert (int(found.tuned_only.sum()), int(found.tuned_only_confirmed.sum())) == (NEW, NEW)
    assert (int(found.base_only.sum()), int(found.base_only_confirmed.sum())) == (LOST, LOST)
    assert int(found.shared.sum()) >= 0.8 * (ATOMS - LOST)
    kinds = (found.tuned_only, found.tuned_more, found.shared, found.base_more, found.base_only)
    assert torch.equal(torch.stack(kinds).sum(0), fit.alive)
    assert fit.base_fvu < 0.15
    assert fit.tuned_fvu < 0.15


def test_a_model_and_itself_have_nothing_of_one_alone() -> None:
    fit = crosscoder_fit(trained(planted(40_000, 1, changed=False), 800), 0, [planted(8000, 7, changed=False)])
    found = specific_latents(fit)
    assert int(found.tuned_only.sum()) == int(found.base_only.sum()) == 0
    assert int(found.shared.sum()) >= 0.8 * ATOMS


def test_scaling_is_the_least_squares_factor_of_every_latent() -> None:
    """Held against solving for each latent by itself, with its own part taken out of the reconstruction."""
    rows = planted(1500, 3)
    stack = trained(planted(8000, 1), 60)
    fit = crosscoder_fit(stack, 0, rows.split(400))
    latents = stack.encode(0, rows) * stack.scale[0]
    rebuilt = stack.decode(0, stack.encode(0, rows))
    checked = 0
    for latent in fit.alive.nonzero()[:20, 0].tolist():
        halves = stack.W_dec[0, latent].split(WIDTH)
        of_tuned = bool(halves[1].norm() >= halves[0].norm())
        own = halves[1] if of_tuned else halves[0]
        strength = latents[:, latent]
        regressor = (strength[:, None] * own).flatten().double()[:, None]
        factors: dict[str, list[float]] = {"error": [], "reconstruction": []}
        for side in (0, 1):
            part = slice(side * WIDTH, (side + 1) * WIDTH)
            without = rows[:, part] - (rebuilt[:, part] - strength[:, None] * halves[side])
            for name, target in (("error", without), ("reconstruction", rebuilt[:, part])):
                factors[name].append(float(torch.linalg.lstsq(regressor, target.flatten().double()[:, None]).solution))
        for name, found in (("error", fit.scaling.in_error), ("reconstruction", fit.scaling.in_reconstruction)):
            base, tuned = factors[name]
            other, mine = (base, tuned) if of_tuned else (tuned, base)
            if mine > 0:
                assert float(found[latent]) == pytest.approx(other / mine, rel=1e-3, abs=1e-4)
                checked += 1
    assert checked >= 30


def test_relative_norms_run_from_base_to_tuned() -> None:
    rows = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 3, 4], [0, 2, 0, 1]])
    assert relative_norms(rows).tolist() == [0.0, 0.5, 1.0, 0.25]


def test_rows_that_do_not_vary_have_no_fvu() -> None:
    stack = SaeStack.initial(Normalisation.of(planted(100, 1)[None]), LATENTS, generator())
    with pytest.raises(ValueError, match="have no variance"):
        crosscoder_fit(stack, 0, [torch.ones(10, 2 * WIDTH)])
    with pytest.raises(ValueError, match="0 rows"):
        crosscoder_fit(stack, 0, [])
