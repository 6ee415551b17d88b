"""The freeze sweep's depths, rules and advice. The sweep with its trainings: tests/stages/test_training.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import FreezeSweep
from tests.builders.checkpoints import InMemory
from tests.builders.models import save_model, tiny_bert
from tests.builders.stages import pair_context, resolved, tuning
from workers.results.effects import Recommendation, Sweep, SweepPoint
from workers.stages.causal import sweep as module
from workers.stages.causal.sweep import (
    NOT_RETRAINED,
    _depths,
    _kept_or_made,
    _name,
    _part,
    _point,
    _regrets,
    _Runs,
    _strategies,
    advice_of,
)
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.progress import NO_NUMBERS, Numbers
from workers.stages.common.training import Recipe, Training, TrainingData


@pytest.mark.parametrize(("depths", "expected"), [(None, [0, 1, 2, 3, 4]), ([3, 1, 3], [0, 1, 3]), ([4], [0, 4])])
def test_depths_begin_with_nothing_frozen_and_come_once_each(depths: list[int] | None, expected: list[int]) -> None:
    assert _depths(FreezeSweep(depths=depths), 4) == expected


def test_more_blocks_than_there_are_cannot_be_frozen() -> None:
    with pytest.raises(InputError, match="has 4 blocks; 5 of them cannot be frozen") as raised:
        _depths(FreezeSweep(depths=[1, 5]), 4)
    assert raised.value.errors[0].pointer == "/analysis/freeze_sweep/depths"


@pytest.mark.parametrize(
    ("recommended", "norms", "by_norm"),
    [
        (2, [0.5, 0.1, 0.9, 0.2], {2, 4}),
        (0, [0.5, 0.1], set()),
        (2, [0.3, 0.3, 0.3], {1, 2}),
        (3, [3.0, 2.0, 1.0], {1, 2, 3}),
    ],
    ids=["the weakest", "nothing", "ties from the bottom", "all"],
)
def test_each_rule_freezes_its_blocks(recommended: int, norms: list[float], by_norm: set[int]) -> None:
    found = _strategies(recommended, norms)
    assert found["recommended"] == set(range(1, recommended + 1))
    assert found["nothing"] == set()
    assert found["half"] == set(range(1, len(norms) // 2 + 1))
    assert found["gradient_norm"] == by_norm


def recipe(seed: int = 0, frozen: tuple[int, ...] = (), **changes: Any) -> Recipe:
    asked = tuning(**changes).finetune
    assert asked is not None
    return Recipe(asked, seed, frozenset(frozen))


def test_a_training_is_named_by_its_seed_settings_and_frozen_blocks_in_any_order() -> None:
    names = {_name(recipe()), _name(recipe(1)), _name(recipe(0, (1,))), _name(recipe(epochs=9))}
    assert len(names) == 4
    assert _name(recipe(0, (3, 1, 2))) == _name(recipe(0, (2, 1, 3)))


def test_the_progress_of_a_training_is_its_part_of_all() -> None:
    heard: list[tuple[float, str]] = []

    def on_progress(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
        heard.append((fraction, detail))

    _part(on_progress, 3, 4, "2 blocks frozen, seed 1")(0.5, "step 7")
    assert heard == [(0.875, "2 blocks frozen, seed 1: step 7")]


def runs_of(hits: list[list[int]], seconds: float = 1.0, memory: int = 100, cached: bool = True) -> _Runs:
    trainings = [
        Training(
            losses=[1.0], step_seconds=[seconds, 9 * seconds, seconds], training_bytes=memory + number, cached=cached
        )
        for number in range(len(hits))
    ]
    return _Runs(frozenset(), torch.tensor(hits).bool(), trainings)


NOTHING = runs_of([[1] * 190 + [0] * 10, [1] * 190 + [0] * 10])


def test_nothing_frozen_loses_nothing_against_itself() -> None:
    point = _point(NOTHING, NOTHING, 0, FreezeSweep(epsilon=0.5), None)
    assert (point.loss_points, point.loss_bound_points, point.validated) == (0.0, 0.0, True)
    assert point.by_seed == pytest.approx([0.95, 0.95])


@pytest.mark.parametrize(("epsilon", "validated"), [(20.0, True), (3.0, False)])
def test_a_loss_is_in_points_and_validated_where_its_bound_is_within_the_margin(
    epsilon: float, validated: bool
) -> None:
    frozen = runs_of([[1] * 184 + [0] * 16, [1] * 184 + [0] * 16], seconds=0.5, memory=40, cached=False)
    point = _point(frozen, NOTHING, 2, FreezeSweep(epsilon=epsilon), None)
    assert point.loss_points == pytest.approx(3.0)
    assert 3.0 < point.loss_bound_points < 20.0
    assert point.validated is validated
    assert (point.step_seconds, point.training_bytes, point.cached) == (0.5, 41, False)  # median, most, all
    assert point.accuracy == pytest.approx(0.92)


def test_texts_that_are_alike_make_the_bound_wider() -> None:
    frozen = runs_of([[1] * 180 + [0] * 20] * 2)
    bounds = [
        _point(frozen, NOTHING, 1, FreezeSweep(), units).loss_bound_points
        for units in (None, torch.arange(200) // 20, torch.zeros(200, dtype=torch.int64))
    ]
    assert bounds[0] < bounds[1] < bounds[2] == 100.0


def test_regret_is_what_a_rule_loses_against_the_best_depth() -> None:
    one, other = frozenset({1}), frozenset({1, 2})
    runs = {one: runs_of([[1, 1, 1, 0]] * 2), other: runs_of([[1, 0, 0, 0]] * 2)}
    found = _regrets({"recommended": one, "half": other}, runs, 0.75)
    assert [(rule.name, rule.frozen_blocks, rule.accuracy, rule.regret_points) for rule in found] == [
        ("recommended", [1], 0.75, 0.0),
        ("half", [1, 2], 0.25, 50.0),
    ]


def point(depth: int, validated: bool, bound: float = 0.4) -> SweepPoint:
    return SweepPoint(
        freeze_first=depth,
        accuracy=0.9,
        by_seed=[0.9, 0.9],
        loss_points=0.1 if depth else 0.0,
        loss_bound_points=bound if depth else 0.0,
        validated=validated,
        step_seconds=1.0 / (1 + depth),
        training_bytes=100 // (1 + depth),
        cached=False,
    )


def sweep_of(*validated: bool) -> Sweep:
    points = [point(0, True), *(point(depth, one) for depth, one in enumerate(validated, start=1))]
    return Sweep(epsilon_points=0.5, seeds=[0, 1], examples=300, points=points, strategies=[])


PREDICTED = Recommendation(freeze_first=2, basis="predicted", evidence=f"The curve says so. {NOT_RETRAINED}")


@pytest.mark.parametrize(
    ("validated", "freeze_first", "basis"),
    [
        ((True, True, True), 3, "validated"),
        ((True, True, False), 2, "validated"),
        ((True, False, True), 1, "validated"),
        ((False, True, True), 2, "predicted"),
        ((False,), 2, "predicted"),
    ],
)
def test_the_first_depth_that_fails_ends_the_advice(validated: tuple[bool, ...], freeze_first: int, basis: str) -> None:
    found = advice_of(sweep_of(*validated), PREDICTED)
    assert (found.freeze_first, found.basis) == (freeze_first, basis)


def test_confirmed_advice_tells_loss_time_and_memory_of_its_depth() -> None:
    evidence = advice_of(sweep_of(True, True, False), PREDICTED).evidence
    assert "drops by 0.10 points, at most 0.40 (one-sided 95 %), within the margin of 0.5" in evidence
    assert "33% of the time and 33% of the memory (2 seeds, 300 rows)" in evidence


def test_advice_that_was_not_confirmed_no_longer_says_that_nothing_was_retrained() -> None:
    evidence = advice_of(sweep_of(False), PREDICTED).evidence
    assert evidence.startswith("The curve says so. The sweep does not confirm any freezing within 0.5 points: with 1 ")
    assert NOT_RETRAINED not in evidence
    other = advice_of(sweep_of(False), replace(PREDICTED, evidence="Something else."))
    assert other.evidence.startswith("Something else.")


def test_a_training_that_was_kept_is_not_made_again_and_comes_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def one(_: Any, __: Any, given: Recipe, *___: Any) -> tuple[Tensor, Training]:
        made.append(given.seed)
        training = Training(losses=[0.1, 1 / 3], step_seconds=[1e-9, 2.5], training_bytes=2**40, cached=True)
        return torch.tensor([True, False, given.seed > 0]), training

    monkeypatch.setattr(module, "_one", one)
    given = resolved(save_model(tiny_bert(blocks=1), tmp_path / "base"), texts=1)
    data = TrainingData(given.tokenizer, 32, ["a", "b"], [], [])
    context = pair_context(given, tmp_path, tmp_path, checkpointing=Checkpointing(InMemory(), float("inf")))
    first = _kept_or_made(context, data, recipe(1), [])
    again = _kept_or_made(context, data, recipe(1), [])
    other = _kept_or_made(context, data, recipe(0), [])
    assert made == [1, 0]
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert other[0].tolist() == [True, False, False]
