"""Crosscoders of a pair and, as their floor, of the base model and itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.builders.features import WIDTH, planted
from tests.builders.stages import on_progress
from workers.analysis.sae import OUTLIER_FACTOR, SaeConfig
from workers.scratch import ActivationStore
from workers.stages.common.checkpointing import NO_CHECKPOINTING
from workers.stages.common.progress import Spans
from workers.stages.sae.crosscoding import CROSSCODERS, Crosscoding
from workers.stages.sae.runs import Outcome, Runs

LATENTS, K = 48, 4


def states_of(rows: int, seed: int) -> Tensor:
    """Two layers of two models; the tuned model's second layer has nothing of the base model's. [4, N, D]."""
    first, second, other = (planted(rows, seed + place)[0] for place in (0, 10, 20))
    return torch.stack([first, second, first, other.roll(1, dims=1)])


SCALES = torch.tensor([1.0, 2.0, 4.0, 8.0])


def crosscoding(architecture: str = "batch_topk", steps: int = 150) -> Crosscoding:
    config = SaeConfig(LATENTS, K, steps, 128, architecture)  # type: ignore[arg-type]
    return Crosscoding(SCALES, states_of(256, 1), config, seed=0)


def test_pairs_come_first_and_then_the_base_model_beside_itself() -> None:
    states = states_of(5, 1)
    base_0, base_1, tuned_0, tuned_1 = (state / scale for state, scale in zip(states, SCALES, strict=True))
    expected = [(base_0, tuned_0), (base_1, tuned_1), (base_0, base_0), (base_1, base_1)]
    found = list(crosscoding().rows_of(states))
    assert len(found) == 4
    for rows, sides in zip(found, expected, strict=True):
        torch.testing.assert_close(rows, torch.cat(sides, dim=1))


@pytest.mark.parametrize(("architecture", "row_k"), [("batch_topk", 0), ("topk", K)])
def test_a_stack_has_a_crosscoder_of_both_widths_for_each(architecture: str, row_k: int) -> None:
    stack = crosscoding(architecture).stack
    assert stack.W_dec.shape == (4, LATENTS, 2 * WIDTH)
    assert stack.row_k == row_k


def test_an_odd_number_of_sites_is_no_pair() -> None:
    with pytest.raises(ValueError, match="3 sites"):
        Crosscoding(SCALES[:3], states_of(8, 1)[:3], SaeConfig(LATENTS, K, 10, 128), seed=0)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Crosscoding, Outcome]:
    made = crosscoding()
    store = ActivationStore(tmp_path / "train", max_rows=2048)
    store.add(states_of(2048, 1))
    runs = Runs(store, 0, False, Spans(on_progress, {CROSSCODERS: 1.0}), NO_CHECKPOINTING)
    return made, made.train(runs)


def test_unrelated_models_have_latents_of_one_alone_and_equal_ones_have_as_few_as_the_floor(
    trained: tuple[Crosscoding, Outcome], tmp_path: Path
) -> None:
    made, outcome = trained
    heldout = ActivationStore(tmp_path / "heldout", max_rows=512)
    heldout.add(states_of(512, 100))
    seen: list[float] = []

    def heard(fraction: float, *_: object) -> None:
        seen.append(fraction)

    same, unrelated = made.measured(heldout, outcome, heard)
    assert seen == [0.5, 1.0]
    assert same.base_fvu == pytest.approx(same.tuned_fvu, rel=0.05)
    assert same.base_fvu < 0.9
    assert unrelated.pair.tuned_only + unrelated.pair.base_only > same.pair.tuned_only + same.pair.base_only
    for layer, found in enumerate((same, unrelated)):
        assert found.tuned_only_excess == found.pair.tuned_only_confirmed - found.floor.tuned_only_confirmed
        variance = found.pair.base_only_confirmed + found.floor.base_only_confirmed
        assert found.base_only_error == pytest.approx(variance**0.5)
        assert found.dead_fraction == float(outcome.dead_fraction[layer])


def test_rows_of_outlying_norm_are_not_measured(trained: tuple[Crosscoding, Outcome], tmp_path: Path) -> None:
    made, outcome = trained
    rows = states_of(512, 100)
    far = rows[:, :3] * 100 * OUTLIER_FACTOR
    found = []
    for name, given in (("plain", rows), ("far", torch.cat([rows, far], dim=1))):
        store = ActivationStore(tmp_path / name, max_rows=9999)
        store.add(given)
        found.append(made.measured(store, outcome, on_progress)[0])
    assert found[1].base_fvu == pytest.approx(found[0].base_fvu, rel=1e-3)
    assert found[1].l0 == pytest.approx(found[0].l0, rel=1e-3)


def test_the_start_follows_the_seed() -> None:
    config = SaeConfig(LATENTS, K, 10, 128)
    one, same, other = (Crosscoding(SCALES, states_of(64, 1), config, seed).stack.W_dec for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
