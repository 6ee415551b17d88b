from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workers.analysis.matching import fates_of, matching
from workers.analysis.sae import Normalisation, SaeConfig, SaeStack
from workers.analysis.sae_training import StackTrainer

WIDTH, ATOMS, NEW = 24, 40, 4


def unit(rows: Tensor) -> Tensor:
    return nn.functional.normalize(rows, dim=1)


def test_each_fate_is_told_apart() -> None:
    """Directions of the standard basis; latent 4 was dead before, latent 5 dies."""
    before = torch.eye(8)[:6]
    after = before.clone()
    after[1] = unit(torch.tensor([[0.0, 0.8, 0, 0, 0, 0, 0.6, 0]]))[0]
    after[2] = torch.eye(8)[7]
    after[3] = torch.eye(8)[0]
    alive = torch.full((6,), 0.01)
    rates_before, rates_after = alive.clone(), alive.clone()
    rates_before[4] = rates_after[5] = 0.0
    found = fates_of(before, after, rates_before, rates_after)
    # 0 stays, 1 shifts, 2 and 3 leave their directions and 5 dies; 2's is unknown, and so is that of 4
    fates = {name: getattr(found, name).nonzero()[:, 0].tolist() for name in ("retained", "shifted", "lost", "new")}
    assert fates == {"retained": [0], "shifted": [1], "lost": [2, 3, 5], "new": [2, 4]}
    torch.testing.assert_close(found.cosines, torch.tensor([1.0, 0.8, 0.0, 0.0, 1.0, 1.0]))


def test_an_assignment_finds_a_permutation_and_no_more() -> None:
    generator = torch.Generator().manual_seed(0)
    one = unit(torch.randn(30, 200, generator=generator))
    rates = torch.full((30,), 0.01)
    found = matching(one, one[torch.randperm(30, generator=generator)], rates, rates)
    assert found is not None
    assert found.matched_share == 1.0
    assert found.mean_cosine == pytest.approx(1.0)
    unrelated = matching(one, unit(torch.randn(30, 200, generator=generator)), rates, rates)
    assert unrelated is not None
    assert unrelated.matched_share == 0.0
    assert matching(one, one, rates * 0, rates) is None


def planted(dictionary: Tensor, rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, len(dictionary), generator=generator).topk(3, dim=1).indices
    strengths = 0.5 + torch.rand(rows, 3, generator=generator)
    return torch.einsum("nk,nkd->nd", strengths, dictionary[chosen])


def trained(stack: SaeStack, rows: Tensor, steps: int, seed: int) -> SaeStack:
    trainer = StackTrainer(stack, SaeConfig(latents=80, k=3, steps=steps, batch=256), torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        trainer.step(rows[torch.randint(len(rows), (256,), generator=generator)][None])
    return stack


def rates(stack: SaeStack, rows: Tensor) -> Tensor:
    return (stack.encode(0, rows) > 0).float().mean(0)


def test_planted_new_atoms_come_out_as_new_and_few_others_do() -> None:
    """The second model has four atoms more; the floor is a warm start on other rows of the first."""
    atoms = unit(torch.randn(ATOMS + NEW, WIDTH, generator=torch.Generator().manual_seed(7)))
    base_rows, tuned_rows = planted(atoms[:ATOMS], 20_000, 1), planted(atoms, 20_000, 2)
    normalisation = Normalisation.of(base_rows[None])
    base = trained(SaeStack.initial(normalisation, 80, torch.Generator().manual_seed(0)), base_rows, 800, 3)
    floor = trained(base.copy(), planted(atoms[:ATOMS], 20_000, 4), 300, 5)
    tuned = trained(base.copy(), tuned_rows, 300, 6)
    before = rates(base, base_rows)
    of_floor = fates_of(base.W_dec[0], floor.W_dec[0], before, rates(floor, base_rows))
    found = fates_of(base.W_dec[0], tuned.W_dec[0], before, rates(tuned, tuned_rows))
    recovered = (atoms[ATOMS:] @ tuned.W_dec[0][rates(tuned, tuned_rows) > 0].T).amax(1)
    assert float(recovered.min()) > 0.9
    assert NEW <= int(found.new.sum()) <= NEW + 2
    assert int(of_floor.new.sum()) <= 1
    assert int(found.retained.sum()) >= 0.8 * int(of_floor.retained.sum())
