"""Fine-tunes on a tiny model: what is frozen, cached, kept and repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest, FineTune
from tests.builders.checkpoints import InMemory
from tests.builders.models import BLOCKS, add_noise, save_model, tiny_bert
from tests.builders.stages import fine_tuned, labelled, pair_context, resolved, tuning
from workers.models.prefix import PrefixCache
from workers.results.effects import Recommendation
from workers.stages.causal.sweep import NOT_RETRAINED, advice_of, freeze_sweep
from workers.stages.common import training as module
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.inputs import Resolved, Split
from workers.stages.common.progress import NO_NUMBERS, Numbers
from workers.stages.common.training import Recipe, Training, evaluate, gradient_norms, planned_steps, train
from workers.stages.finetune.stage import fresh_classifier, training_data


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tiny_bert(0), tmp_path / "base")


def with_held_out(base: Path, train: int = 128, held_out: int = 60) -> Resolved:
    given = resolved(base, texts=100, train=train)
    rows = labelled(400 + held_out)[400:]
    split = Split(given.split.analysed, given.split.train, rows[:0], rows)
    return replace(given, split=split)


def trained(given: Resolved, asked: AnalysisRequest, recipe: Recipe) -> tuple[dict[str, torch.Tensor], Training]:
    with fresh_classifier(given, training_data(asked, given), recipe) as (model, data):
        run = train(model, data, recipe, _tick)
        return {name: value.clone() for name, value in model.state_dict().items()}, run


def settings(**changes: Any) -> FineTune:
    asked = tuning(precision="float32", **changes).finetune
    assert asked is not None
    return asked


def test_the_cache_of_a_frozen_prefix_changes_nothing_but_the_time(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen blocks run once for each row; the weights are those of a run without the cache."""
    given, asked = with_held_out(base), tuning(precision="float32")
    recipe = Recipe(settings(freeze_first=2, epochs=3), 0, frozen=frozenset({1, 2}))
    cached, run = trained(given, asked, recipe)
    monkeypatch.setattr(module, "_prefix_cache", lambda *_: None)
    plain, slow = trained(given, asked, recipe)
    assert (run.cached, slow.cached) == (True, False)
    for name, value in plain.items():
        if not name.endswith("key.bias"):  # no answer depends on it: Adam moves it by the rounding of a zero gradient
            torch.testing.assert_close(cached[name], value, atol=2e-4, rtol=1e-3, msg=name)
    assert run.losses == pytest.approx(slow.losses, abs=1e-3)


def test_a_prefix_that_is_not_frozen_is_found_out_by_its_answers(base: Path) -> None:
    given = with_held_out(base)
    recipe = Recipe(settings(), 0)
    with fresh_classifier(given, training_data(tuning(), given), recipe) as (model, data):
        model.eval()
        cache = PrefixCache(model, 2, len(data.train))
        part = next(module._epochs(data, recipe.settings, 0)).parts[0]
        batch, rows = part.batch, part.rows
        with torch.no_grad():
            cache.logits(batch, rows)
            add_noise(model.base_model, block=1)  # type: ignore[arg-type]
            honest = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            torch.testing.assert_close(cache.logits(batch, rows), honest)
        assert not cache.used


def test_frozen_blocks_may_have_gaps(base: Path) -> None:
    given, asked = with_held_out(base), tuning(precision="float32", epochs=1)
    before, _ = trained(given, asked, Recipe(settings(epochs=1, max_steps=1, learning_rate=1e-12), 0))
    after, _ = trained(given, asked, Recipe(settings(epochs=1), 0, frozen=frozenset({1, 3})))
    moved = {
        block: any(
            not torch.allclose(after[name], before[name], atol=1e-9) for name in after if f"layer.{block - 1}." in name
        )
        for block in range(1, BLOCKS + 1)
    }
    assert moved == {1: False, 2: True, 3: False}


def test_the_best_weights_are_kept_and_not_the_last(base: Path, tmp_path: Path) -> None:
    """With a learning rate that wrecks the model, an early epoch is the best one."""
    given = with_held_out(base)
    for keep in ("best", "last"):
        asked = tuning(epochs=5, learning_rate=0.02, keep=keep)
        tuned = fine_tuned(asked, given, tmp_path / keep)
        best = min(tuned.run.held_out, key=lambda one: (-one.accuracy, one.loss))
        assert len(tuned.run.held_out) == 5
        with fresh_classifier(given, training_data(asked, given), Recipe(settings(), 0)) as (model, data):
            model.load_state_dict(load_file(tuned.checkpoint.folder / "model.safetensors"))
            found = float(evaluate(model, data, data.held_out)[0].double().mean())
        assert tuned.run.kept_step == (best.step if keep == "best" else tuned.run.steps)
        assert found == pytest.approx((best if keep == "best" else tuned.run.held_out[-1]).accuracy)


@pytest.mark.parametrize("freeze_first", [0, 2, 3])
def test_low_rank_adapters_move_the_blocks_by_their_rank_and_are_merged(
    base: Path, tmp_path: Path, freeze_first: int
) -> None:
    given = with_held_out(base)
    asked = tuning(method="lora", lora={"rank": 2}, freeze_first=freeze_first, epochs=2, learning_rate=1e-2)
    tuned = fine_tuned(asked, given, tmp_path / "tuned")
    after = load_file(tuned.checkpoint.folder / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert {name.removeprefix("bert.") for name in after if "classifier" not in name} == set(before)
    for name, value in before.items():
        change = after[f"bert.{name}"] - value
        linear = name.startswith("encoder") and name.endswith("weight") and "LayerNorm" not in name
        trained_block = linear and int(name.split(".")[2]) >= freeze_first
        rank = int(torch.linalg.matrix_rank(change, atol=1e-5)) if change.ndim == 2 else int(bool(change.any()))
        if "pooler" not in name:
            assert rank == (2 if trained_block else 0), name
    assert tuned.run.trainable_parameters < sum(value.numel() for value in before.values())


def test_freezing_more_blocks_than_there_are_is_refused_for_every_method(base: Path, tmp_path: Path) -> None:
    for method in ("full", "lora"):
        asked = tuning(method=method, freeze_first=BLOCKS + 1)
        with pytest.raises(InputError, match=f"the model has {BLOCKS} blocks"):
            fine_tuned(asked, with_held_out(base), tmp_path / method)


def test_snapshots_lie_along_the_run_and_end_in_the_tuned_model(base: Path, tmp_path: Path) -> None:
    asked = tuning(epochs=2, checkpoints=4, keep="last")
    tuned = fine_tuned(asked, with_held_out(base), tmp_path / "tuned")
    assert [snapshot.step for snapshot in tuned.snapshots] == [4, 8, 12, 16]
    start = load_file(base / "model.safetensors")
    moved = [
        float((load_file(one.folder / "model.safetensors")[f"bert.{name}"] - start[name]).norm())
        for one in tuned.snapshots
        for name in ("encoder.layer.1.output.dense.weight",)
    ]
    assert moved == sorted(moved)
    assert tuned.snapshots[-1].folder == tuned.checkpoint.folder


def test_nulls_are_trained_like_the_model_but_for_one_thing(base: Path, tmp_path: Path) -> None:
    asked = tuning(epochs=6, precision="float32")
    nulls = asked.analysis.model_copy(update={"noise_floors": ["reseed", "label_shuffle"]})
    asked = asked.model_copy(update={"analysis": nulls})
    given = with_held_out(base, train=300)
    tuned = fine_tuned(asked, given, tmp_path / "tuned")
    assert list(tuned.retrained) == ["reseed", "reseed-2", "label_shuffle"]
    accuracies = {}
    for name, folder in [("tuned", tuned.checkpoint.folder), *((n, c.folder) for n, c in tuned.retrained.items())]:
        with fresh_classifier(given, training_data(asked, given), Recipe(settings(), 0)) as (model, data):
            model.load_state_dict(load_file(folder / "model.safetensors"))
            accuracies[name] = float(evaluate(model, data, given.split.analysed)[0].double().mean())
    learnt = [accuracies[name] for name in ("tuned", "reseed", "reseed-2")]
    assert min(learnt) > accuracies["label_shuffle"] + 0.1
    fingerprints = {tuned.checkpoint.fingerprint, *(one.fingerprint for one in tuned.retrained.values())}
    assert len(fingerprints) == 4


def test_shuffled_labels_are_the_same_labels_on_other_rows(base: Path) -> None:
    given = with_held_out(base)
    data = training_data(tuning(), given)
    shuffled = data.shuffled(1)
    assert sorted(shuffled.numbers()) == sorted(data.numbers())
    assert shuffled.numbers() != data.numbers()
    assert shuffled.numbers() == data.shuffled(1).numbers()


def test_gradient_norms_tell_blocks_apart_and_leave_the_model_alone(base: Path) -> None:
    given = with_held_out(base)
    with fresh_classifier(given, training_data(tuning(), given), Recipe(settings(), 0)) as (model, data):
        before = [parameter.clone() for parameter in model.parameters()]
        norms = gradient_norms(model, data, settings(), 0, 2)
        assert len(norms) == BLOCKS
        assert all(norm > 0 for norm in norms)
        assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
        assert all(parameter.grad is None for parameter in model.parameters())


def test_freezing_saves_memory_and_the_sweep_measures_what_it_costs(base: Path, tmp_path: Path) -> None:
    sweep = {"depths": [1, 3], "seeds": 2, "epsilon": 100}
    asked = tuning(epochs=2, precision="float32")
    body = asked.model_dump() | {"analysis": {"sae": None, "freeze_sweep": sweep}}
    asked = AnalysisRequest.model_validate(body)
    predicted = Recommendation(freeze_first=2, basis="predicted", evidence=f"The curve says so. {NOT_RETRAINED}")
    given = with_held_out(base)
    found, advice = freeze_sweep(pair_context(given, base, tmp_path, asked), predicted)
    assert [point.freeze_first for point in found.points] == [0, 1, 3]
    assert (found.seeds, found.examples) == ([0, 1], 100)
    assert [point.cached for point in found.points] == [False, True, True]
    memory = [point.training_bytes for point in found.points]
    assert memory[0] > memory[1] > memory[2]
    assert found.points[0].loss_points == found.points[0].loss_bound_points == 0.0
    for point in found.points:
        assert point.accuracy == pytest.approx(sum(point.by_seed) / 2)
        assert point.loss_points <= point.loss_bound_points
    assert {one.name: one.frozen_blocks for one in found.strategies if one.name != "gradient_norm"} == {
        "recommended": [1, 2],
        "nothing": [],
        "half": [1],
    }
    by_norm = next(one for one in found.strategies if one.name == "gradient_norm")
    assert len(by_norm.frozen_blocks) == 2
    assert min(one.regret_points for one in found.strategies if one.name in ("nothing", "half")) >= 0
    assert (advice.basis, advice.freeze_first) == ("validated", 3)
    refused = [replace(point, validated=False) for point in found.points]
    advice = advice_of(replace(found, points=refused), predicted)
    assert (advice.basis, advice.freeze_first) == ("predicted", 2)
    assert advice.evidence.startswith("The curve says so. The sweep does not confirm")
    shallow_fails = [replace(point, validated=point.freeze_first != 1) for point in found.points]
    assert advice_of(replace(found, points=shallow_fails), predicted).basis == "predicted"


def test_a_sweep_that_was_broken_off_makes_only_the_trainings_that_were_left(base: Path, tmp_path: Path) -> None:
    sweep = {"depths": [2], "seeds": 2, "epsilon": 100}
    body = tuning(epochs=1, precision="float32").model_dump() | {"analysis": {"sae": None, "freeze_sweep": sweep}}
    asked = AnalysisRequest.model_validate(body)
    predicted = Recommendation(freeze_first=2, basis="predicted", evidence=NOT_RETRAINED)
    given = with_held_out(base)
    checkpointing = Checkpointing(InMemory(), float("inf"))
    made: list[str] = []

    def until_depth_2(_share: float, detail: str = "", _numbers: Numbers = NO_NUMBERS) -> None:
        if detail.startswith("2 blocks"):
            raise InterruptedError

    def watched(_share: float, detail: str = "", _numbers: Numbers = NO_NUMBERS) -> None:
        training, _, what = detail.partition(": ")
        if what != "already trained" and training not in made:
            made.append(training)

    context = pair_context(given, base, tmp_path, asked, checkpointing=checkpointing)
    with pytest.raises(InterruptedError):
        freeze_sweep(context.part(until_depth_2), predicted)
    found, _ = freeze_sweep(context.part(watched), predicted)
    assert not [what for what in made if what.startswith("0 blocks")]
    assert "2 blocks frozen, seed 0" in made
    whole, _ = freeze_sweep(pair_context(given, base, tmp_path, asked), predicted)
    assert [point.by_seed for point in found.points] == [point.by_seed for point in whole.points]
    assert [point.loss_bound_points for point in found.points] == [point.loss_bound_points for point in whole.points]


def test_the_plan_of_steps_counts_epochs_and_limits() -> None:
    assert planned_steps(settings(epochs=3, batch_size=16), 33) == 9
    assert planned_steps(settings(epochs=3, batch_size=16, max_steps=4), 33) == 4


def test_a_label_that_was_never_trained_counts_as_wrong(base: Path) -> None:
    given = with_held_out(base)
    with fresh_classifier(given, training_data(tuning(), given), Recipe(settings(), 0)) as (model, data):
        strange = [row._replace(label="strange") for row in data.held_out]
        right, loss = evaluate(model, data, strange)
    assert (int(right.sum()), loss) == (0, 0.0)


def _tick(_share: float, _detail: str = "", _numbers: Numbers = NO_NUMBERS) -> None:
    """Nobody watches."""
