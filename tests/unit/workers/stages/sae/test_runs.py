"""Runs of training that end early, are broken off and gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.builders.checkpoints import InMemory, KeptTrainings
from workers.analysis.sae import Normalisation, SaeConfig, SaeStack
from workers.scratch import ActivationStore
from workers.stages.common import checkpointing as checkpointing_module
from workers.stages.common.checkpointing import NO_CHECKPOINTING, Checkpointing
from workers.stages.common.progress import NO_NUMBERS, Numbers, Spans
from workers.stages.sae.runs import Outcome, Plan, Runs, sites_at_once

WIDTH, LATENTS, BATCH = 16, 64, 128
PAIR = Plan(what="training", sites=[0, 1])


class Stopped(Exception):
    """Somebody stopped the job."""


@pytest.fixture(autouse=True)
def saved_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long saving takes."""
    monkeypatch.setattr(checkpointing_module, "SAVING_SHARE", 1.0)


def planted(rows: int) -> Tensor:
    dictionary = nn.functional.normalize(torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(9)), dim=1)
    chosen = torch.rand(rows, 32, generator=torch.Generator().manual_seed(1)).topk(3, dim=1).indices
    strengths = 0.5 + torch.rand(rows, 3, generator=torch.Generator().manual_seed(2))
    return torch.einsum("nk,nkd->nd", strengths, dictionary[chosen])


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    found = ActivationStore(tmp_path / "rows", max_rows=10_000)
    rows = planted(10_000)
    found.add(torch.stack([rows, rows.flip(1)]))
    return found


def fresh(store: ActivationStore) -> SaeStack:
    return SaeStack.initial(Normalisation.of(next(store.shards())), LATENTS, torch.Generator().manual_seed(0))


def run(
    store: ActivationStore,
    stack: SaeStack,
    config: SaeConfig,
    checkpointing: Checkpointing = NO_CHECKPOINTING,
    stop_after: int | None = None,
    early_stop: bool = False,
) -> Outcome:
    heard: list[str] = []

    def on_progress(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
        assert 0 <= fraction <= 1
        heard.append(detail)
        if stop_after is not None and f"step {stop_after + 1} of" in detail:
            raise Stopped

    found = Runs(store, 0, early_stop, Spans(on_progress, {"training": 1.0}), checkpointing).run(stack, config, PAIR)
    heard = [detail for detail in heard if "saving" not in detail]
    assert heard[-1].startswith(f"training: step {found.steps} of {found.steps}, autoencoder 2 of 2, FVU 0.")
    return found


@pytest.mark.parametrize("architecture", ["batch_topk", "topk", "jumprelu", "relu_l1"])
def test_a_run_that_was_broken_off_ends_where_one_that_was_not_does(store: ActivationStore, architecture: str) -> None:
    config = SaeConfig(LATENTS, 4, 40, BATCH, architecture)  # type: ignore[arg-type]
    whole, broken, resumed = (fresh(store) for _ in range(3))
    expected = run(store, whole, config)
    checkpointing = Checkpointing(InMemory(), 0.0)
    with pytest.raises(Stopped):
        run(store, broken, config, checkpointing, stop_after=25)
    found = run(store, resumed, config, checkpointing)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name
    assert torch.equal(expected.unexplained, found.unexplained)
    assert torch.equal(expected.dead_fraction, found.dead_fraction)
    assert not torch.equal(whole.W_dec, broken.W_dec)


def test_only_the_steps_that_were_left_are_made(store: ActivationStore) -> None:
    checkpoints = InMemory()
    config = SaeConfig(LATENTS, 4, 40, BATCH)
    with pytest.raises(Stopped):
        run(store, fresh(store), config, Checkpointing(checkpoints, 0.0), stop_after=25)
    assert [number for number, _ in checkpoints.saved.values()] == [25]
    run(store, fresh(store), config, Checkpointing(checkpoints, float("inf")))
    with pytest.raises(Stopped):  # a step that had been made already would not be heard of
        run(store, fresh(store), config, Checkpointing(checkpoints, float("inf")), stop_after=25)


def test_a_state_of_another_run_is_not_taken_up(store: ActivationStore) -> None:
    checkpoints = InMemory()
    run(store, fresh(store), SaeConfig(LATENTS, 4, 40, BATCH), Checkpointing(checkpoints, 0.0))
    alike, other = fresh(store), fresh(store)
    run(store, alike, SaeConfig(LATENTS, 5, 40, BATCH), Checkpointing(checkpoints, float("inf")))
    run(store, other, SaeConfig(LATENTS, 5, 40, BATCH))
    assert torch.equal(alike.W_dec, other.W_dec)


@pytest.mark.slow
def test_a_run_that_no_longer_improves_ends_early_and_no_worse(store: ActivationStore) -> None:
    config = SaeConfig(LATENTS, 3, 5000, BATCH)
    early = run(store, fresh(store), config, early_stop=True)
    whole = run(store, fresh(store), config)
    assert whole.steps == 5000
    assert early.steps < 4800
    assert float(early.unexplained[-1].mean()) < 1.1 * float(whole.unexplained[-1].mean())  # of few steps each


def test_a_run_that_improves_is_not_ended(store: ActivationStore) -> None:
    assert run(store, fresh(store), SaeConfig(LATENTS, 3, 300, BATCH), early_stop=True).steps == 300


@pytest.mark.parametrize("doubled", [False, True], ids=["stored rows", "rows made of them"])
def test_training_in_parts_gives_what_training_together_gives(store: ActivationStore, doubled: bool) -> None:
    config = SaeConfig(LATENTS, 3, 60, BATCH)
    rows_of = (lambda states: (2 * one for one in states)) if doubled else None
    together, in_parts = fresh(store).of_sites([0, 1, 0, 1, 0]), fresh(store).of_sites([0, 1, 0, 1, 0])
    if doubled:
        together, in_parts = (stack.of_sites([0, 1]) for stack in (together, in_parts))
    shares: list[float] = []

    def on_progress(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
        shares.append(fraction)

    spans = Spans(on_progress, {"training": 1.0})
    plan = Plan(what="training", rows_of=rows_of, sites=() if doubled else [0, 1, 0, 1, 0])
    expected = Runs(store, 0, False, spans, NO_CHECKPOINTING).run(together, config, plan)
    shares.clear()
    of_one = sites_at_once(config, WIDTH, torch.device("cpu"), 2 * 8 * LATENTS * WIDTH)
    assert of_one == 1
    memory = (1 if doubled else 2) * 2 * 8 * LATENTS * WIDTH
    runs = Runs(store, 0, True, spans, NO_CHECKPOINTING, memory=memory)
    found = runs.run(in_parts, config, plan)
    for name, tensor in together.tensors().items():
        assert torch.equal(tensor, in_parts.tensors()[name]), name
    assert found.steps == expected.steps == 60
    for one, other in (
        (found.dead_fraction, expected.dead_fraction),
        (found.outlier_share, expected.outlier_share),
        (found.unexplained, expected.unexplained),
    ):
        assert torch.equal(one, other)
    assert shares == sorted(shares)


def test_a_run_in_parts_goes_on_after_a_stop_where_its_part_was(store: ActivationStore) -> None:
    config = SaeConfig(LATENTS, 3, 40, BATCH)
    expected, broken = fresh(store), fresh(store)
    memory, kept = 2 * 8 * LATENTS * WIDTH, InMemory()
    spans = Spans(lambda *_: None, {"training": 1.0})
    Runs(store, 0, False, spans, NO_CHECKPOINTING, memory=memory).run(expected, config, PAIR)
    heard: list[str] = []

    def stops(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
        heard.append(detail)
        if fraction > 0.75 and "saving" not in detail:
            raise Stopped

    with pytest.raises(Stopped):
        Runs(store, 0, False, Spans(stops, {"training": 1.0}), Checkpointing(kept, 0.0), memory=memory).run(
            broken, config, PAIR
        )
    again = fresh(store)
    Runs(store, 0, False, spans, Checkpointing(kept, 0.0), memory=memory).run(again, config, PAIR)
    for name, tensor in expected.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_at_least_one_autoencoder_is_trained_at_a_time() -> None:
    assert sites_at_once(SaeConfig(LATENTS, 3, 10, BATCH), WIDTH, torch.device("cpu"), 1.0) == 1


def reused(
    store: ActivationStore, kept: KeptTrainings, plan: Plan, config: SaeConfig, seed: int = 0
) -> tuple[SaeStack, bool]:
    """The trained stack, and whether it was taken over."""
    stack, before = fresh(store).of_sites(list(plan.sites)), len(kept.found)
    spans = Spans(lambda *_: None, {"training": 1.0})
    Runs(store, seed, False, spans, NO_CHECKPOINTING, kept).run(stack, config, plan)
    return stack, len(kept.found) > before


def test_a_training_of_the_same_rows_is_taken_over_with_all_its_numbers(store: ActivationStore) -> None:
    kept, config, plan = (
        KeptTrainings(),
        SaeConfig(LATENTS, 3, 20, BATCH),
        Plan(what="training", sites=[0, 0], reuse=True),
    )
    (one, first), (other, again) = (reused(store, kept, plan, config) for _ in range(2))
    assert (first, again) == (False, True)
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert not torch.equal(one.W_dec, fresh(store).of_sites([0, 0]).W_dec)


def test_the_outcome_is_taken_over_too(store: ActivationStore) -> None:
    kept, config = KeptTrainings(), SaeConfig(LATENTS, 3, 20, BATCH)
    spans = Spans(lambda *_: None, {"training": 1.0})
    plan = Plan(what="training", sites=[0, 1], reuse=True)
    runs = Runs(store, 0, False, spans, NO_CHECKPOINTING, kept)
    one, other = (runs.run(fresh(store), config, plan) for _ in range(2))
    assert (one.steps, one.span, one.config) == (other.steps, other.span, other.config)
    for name in ("dead_fraction", "outlier_share", "unexplained"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    "change", ["rows", "seed", "order", "steps", "latents that fire", "sites", "another start", "not to be reused"]
)
def test_whatever_changes_the_numbers_is_another_training(store: ActivationStore, tmp_path: Path, change: str) -> None:
    kept, config, plan = KeptTrainings(), SaeConfig(LATENTS, 3, 20, BATCH), Plan(what="training", sites=[0], reuse=True)
    reused(store, kept, plan, config)
    seed = 0
    match change:
        case "rows":
            rows = torch.cat(list(store.shards()), 1)
            rows[0, -1, -1] += 1
            store = ActivationStore(tmp_path / "others", max_rows=10_000)
            store.add(rows)
        case "seed":
            seed = 1
        case "order":
            plan = replace(plan, order=1)
        case "steps":
            plan = replace(plan, steps=10)
        case "latents that fire":
            config = replace(config, k=4)
        case "sites":
            plan = replace(plan, sites=[0, 0])
        case "another start":
            plan = replace(plan, sites=[1])
        case _:
            plan = replace(plan, reuse=False)
    assert not reused(store, kept, plan, config, seed)[1]


def test_the_other_sites_rows_do_not_matter(store: ActivationStore, tmp_path: Path) -> None:
    """So what is trained of the base model serves whatever it is compared with."""
    kept, config, plan = KeptTrainings(), SaeConfig(LATENTS, 3, 20, BATCH), Plan(what="training", sites=[0], reuse=True)
    reused(store, kept, plan, config)
    rows = torch.cat(list(store.shards()), 1)
    rows[1] *= 2
    other = ActivationStore(tmp_path / "others", max_rows=10_000)
    other.add(rows)
    assert reused(other, kept, plan, config)[1]


def test_runs_of_different_lengths_are_not_joined(store: ActivationStore) -> None:
    spans = Spans(lambda *_: None, {"training": 1.0})
    runs = Runs(store, 0, False, spans, NO_CHECKPOINTING)
    outcomes = [runs.run(fresh(store), SaeConfig(LATENTS, 3, steps, BATCH), PAIR) for steps in (10, 20)]
    with pytest.raises(ValueError, match="different numbers of steps"):
        Outcome.joined(outcomes)


def test_a_run_that_follows_another_decays_as_it_did(store: ActivationStore) -> None:
    """A training of so many steps gives what one gives that was ended early after as many."""
    config = SaeConfig(LATENTS, 3, 5000, BATCH)
    spans = Spans(lambda *_: None, {"training": 1.0})
    early, following = fresh(store), fresh(store)
    found = Runs(store, 0, True, spans, NO_CHECKPOINTING).run(early, config, PAIR)
    assert found.steps < 5000
    Runs(store, 0, True, spans, NO_CHECKPOINTING).run(following, config, replace(PAIR, steps=found.steps))
    for name, tensor in early.tensors().items():
        assert torch.allclose(tensor, following.tensors()[name], atol=1e-6), name
