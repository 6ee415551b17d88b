"""What stage `finetune` keeps and says of its trainings. The trainings themselves: tests/stages/test_training.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from transformers import PreTrainedModel

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import FineTune
from tests.builders.heads import classifier
from tests.builders.models import save_model, tiny_bert, tiny_tokenizer
from tests.builders.stages import resolved, tuning
from workers.results.training import Evaluation
from workers.stages.common.inputs import Checkpoint, Resolved, Split
from workers.stages.common.progress import NO_NUMBERS, Numbers, Spans
from workers.stages.common.training import Recipe, Training, TrainingData
from workers.stages.finetune.stage import (
    LOSS_POINTS,
    MAX_LABELS,
    TUNED,
    FineTuned,
    _numbered,
    _padding,
    _run,
    _Weights,
    _without_adapters,
    fresh_classifier,
    training_data,
)


class Heard:
    def __init__(self) -> None:
        self.calls: list[tuple[float, str, Numbers]] = []

    def __call__(self, fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS, /) -> None:
        self.calls.append((fraction, detail, numbers))


def settings(**changes: Any) -> FineTune:
    asked = tuning(precision="float32", **changes).finetune
    assert asked is not None
    return asked


def test_one_training_is_not_numbered_and_its_curve_is_shown() -> None:
    heard = Heard()
    _numbered(Spans(heard, {TUNED: 1.0}), TUNED, [])(0.5, "step 1", {"loss": 2.0})
    assert heard.calls == [(0.5, "step 1", {"loss": 2.0})]


def test_of_several_trainings_each_has_its_number_and_only_the_models_own_a_curve() -> None:
    heard, nulls = Heard(), ["reseed", "label_shuffle"]
    spans = Spans(heard, dict.fromkeys([TUNED, *nulls], 1.0))
    for name in (TUNED, *nulls):
        _numbered(spans, name, nulls)(1.0, "step 9", {"loss": 2.0})
    assert [detail for _, detail, _ in heard.calls] == ["1 of 3: step 9", "2 of 3: step 9", "3 of 3: step 9"]
    assert [fraction for fraction, _, _ in heard.calls] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert [dict(numbers) for _, _, numbers in heard.calls] == [{"loss": 2.0}, {}, {}]


@pytest.fixture
def given(tmp_path: Path) -> Resolved:
    return resolved(save_model(tiny_bert(), tmp_path / "base"), texts=1)


def with_labels(given_rows: Resolved, labels: list[str]) -> Resolved:
    rows = [Row("good", label) for label in labels]
    return given_rows.__class__(**{**vars(given_rows), "split": Split([], rows, [], rows[:1])})


def test_classes_are_the_labels_in_order_each_once(given: Resolved) -> None:
    data = training_data(tuning(), with_labels(given, ["b", "a", "b", "10", "2"]))
    assert data.labels == ["10", "2", "a", "b"]
    assert data.numbers() == [3, 2, 3, 0, 1]
    assert len(data.held_out) == 1


@pytest.mark.parametrize("count", [MAX_LABELS, MAX_LABELS + 1])
def test_more_labels_than_a_classifier_supports_are_refused(given: Resolved, count: int) -> None:
    labelled = with_labels(given, [str(number) for number in range(count)])
    if count <= MAX_LABELS:
        assert len(training_data(tuning(), labelled).labels) == count
        return
    with pytest.raises(InputError, match=f"{count} different labels") as raised:
        training_data(tuning(), labelled)
    assert raised.value.errors[0].pointer == "/dataset/label_column"


def test_further_seeds_are_those_of_all_nulls_that_differ_in_the_seed_alone(tmp_path: Path) -> None:
    nulls = {name: Checkpoint(tmp_path / name, name, "0") for name in ("label_shuffle", "reseed-2", "reseed")}
    run: Any = None
    made = FineTuned(Checkpoint(tmp_path, "s3://x", "0"), run, [], nulls)
    assert [one.uri for one in made.reseeds] == ["reseed", "reseed-2"]
    assert FineTuned(made.checkpoint, run).reseeds == []


def trained_to(step: int, held_out: list[tuple[int, float]] | None = None) -> Training:
    evaluations = [Evaluation(step=at, loss=1.0, accuracy=accuracy) for at, accuracy in held_out or []]
    return Training(losses=[1.0] * step, held_out=evaluations)


def steps_on_disk(weights: _Weights) -> list[int]:
    return sorted(int(path.stem) for path in weights.folder.iterdir())


@pytest.mark.parametrize(
    ("checkpoints", "steps", "expected"),
    [(0, 10, []), (1, 10, [10]), (4, 10, [2, 5, 8, 10]), (20, 3, [1, 2, 3])],
)
def test_snapshots_lie_at_even_steps_up_to_the_last(
    tmp_path: Path, checkpoints: int, steps: int, expected: list[int]
) -> None:
    assert _Weights(tmp_path, settings(checkpoints=checkpoints), steps).snapshot_steps == expected


def test_weights_are_kept_of_the_best_step_so_far_the_snapshots_and_the_last(tmp_path: Path) -> None:
    """Evaluated after every second step of eight; a snapshot at 4 and 8."""
    weights, model = _Weights(tmp_path / "steps", settings(checkpoints=2), 8), classifier(labels=2)
    accuracies = {2: 0.5, 4: 0.6, 6: 0.9, 8: 0.7}
    kept = []
    for step in range(1, 9):
        seen = [(at, accuracy) for at, accuracy in accuracies.items() if at <= step]
        with torch.no_grad():
            model.classifier.bias.fill_(step)  # type: ignore[operator, union-attr]
        weights.at_step(step, trained_to(step, seen), model)
        kept.append(steps_on_disk(weights) if weights.folder.exists() else [])
    assert kept == [[], [2], [2], [4], [4], [4, 6], [4, 6], [4, 6, 8]]
    assert load_file(weights.folder / "000006.safetensors")["classifier.bias"].tolist() == [6.0, 6.0]


def test_without_held_out_rows_only_the_last_weights_are_kept(tmp_path: Path) -> None:
    weights, model = _Weights(tmp_path / "steps", settings(), 3), classifier(labels=2)
    for step in range(1, 4):
        weights.at_step(step, trained_to(step), model)
    assert steps_on_disk(weights) == [3]


def test_only_trained_weights_are_kept_and_the_export_is_the_model_of_its_step(tmp_path: Path) -> None:
    model, tokenizer = classifier(labels=2), tiny_tokenizer(tmp_path)
    model.base_model.requires_grad_(False)
    weights = _Weights(tmp_path / "steps", settings(), 1)
    head: Any = model.classifier
    with torch.no_grad():
        head.weight.fill_(0.25)
    weights.at_step(1, trained_to(1), model)
    assert set(load_file(tmp_path / "steps" / "000001.safetensors")) == {"classifier.weight", "classifier.bias"}
    with torch.no_grad():
        head.weight.fill_(9.0)
    data = TrainingData(tokenizer, 32, ["a", "b"], [], [])
    folder = weights.export(1, model, data, tmp_path / "tuned")
    saved = load_file(folder / "model.safetensors")
    assert set(saved["classifier.weight"].unique().tolist()) == {0.25}
    assert "bert.embeddings.word_embeddings.weight" in saved
    assert (folder / "tokenizer.json").exists()


def test_a_model_without_adapters_is_itself_and_one_with_them_becomes_a_plain_copy() -> None:
    model = classifier(labels=2)
    assert _without_adapters(model) is model
    ids = torch.tensor([[2, 7, 9, 12, 3]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["query"], init_lora_weights=False), model)
    names = {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        whole, plain = model(ids).logits, _without_adapters(model)
        torch.testing.assert_close(plain(ids).logits, whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(ids).logits, whole)
    assert {name for name, _ in model.named_parameters()} == names
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in classifier(2).named_parameters()}


@pytest.mark.parametrize(
    ("named", "expected"),
    [((7, 8, 9), 7), ((None, 8, 9), 8), ((None, None, 9), 9), ((None, None, None), None), ((0, 8, 9), 0)],
)
def test_padding_is_the_tokenizers_padding_else_its_end_else_unknown(
    named: tuple[int | None, ...], expected: int | None
) -> None:
    class Named:
        pad_token_id, eos_token_id, unk_token_id = named

    tokenizer: Any = Named()
    assert _padding(tokenizer) == expected


@pytest.mark.parametrize("count", [1, 7, LOSS_POINTS, LOSS_POINTS + 1, 250])
def test_a_curve_has_at_most_so_many_points_of_mean_losses_and_ends_at_the_last_step(count: int) -> None:
    losses = [float(number) for number in range(count)]
    unread: Any = None
    data = TrainingData(unread, 32, ["a", "b"], [], [Row("good", "a")] * 3)
    found = _run(settings(), Training(losses=losses), count, classifier(labels=2), data)
    assert len(found.losses) <= LOSS_POINTS
    assert found.losses[-1].step == found.steps == count
    span = found.losses[0].step
    assert found.losses[0].loss == sum(losses[:span]) / span
    last = losses[-max(1, count // 10) :]
    assert found.final_loss == sum(last) / len(last)
    assert (found.held_out_texts, found.precision) == (3, "float32")


def trainable(model: PreTrainedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("frozen", "blocks"), [((), {0, 1, 2}), ((1, 2), {2}), ((2,), {0, 2}), ((1, 2, 3), set())])
def test_adapters_are_on_the_blocks_that_are_trained_and_the_head_is_trained_whole(
    given: Resolved, frozen: tuple[int, ...], blocks: set[int]
) -> None:
    data = training_data(tuning(), with_labels(given, ["a", "b"]))
    with fresh_classifier(given, data, Recipe(settings(method="lora"), 0, frozenset(frozen))) as (model, _):
        names = trainable(model)
        assert model.config.pad_token_id == 0
    head = {name for name in names if not name.startswith("bert.")}
    assert head == {"classifier.weight", "classifier.bias"}
    inside = names - head
    assert all("lora_" in name for name in inside)
    assert {int(name.split(".")[3]) for name in inside} == blocks


@pytest.mark.parametrize(("asked", "frozen", "blocks"), [([1, 3], (), {0, 2}), ([2, 3], (1, 2), {2})])
def test_adapters_are_on_the_blocks_that_are_asked_for(
    given: Resolved, asked: list[int], frozen: tuple[int, ...], blocks: set[int]
) -> None:
    data = training_data(tuning(), with_labels(given, ["a", "b"]))
    recipe = Recipe(settings(method="lora", lora={"rank": 2, "layers": asked}), 0, frozenset(frozen))
    with fresh_classifier(given, data, recipe) as (model, _):
        inside = {name for name in trainable(model) if name.startswith("bert.")}
    assert {int(name.split(".")[3]) for name in inside} == blocks


def test_a_new_head_follows_the_seed_and_torchs_generator_is_left_as_it_was(given: Resolved) -> None:
    data = training_data(tuning(), with_labels(given, ["a", "b"]))
    before, heads = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        with fresh_classifier(given, data, Recipe(settings(), seed)) as (model, read):
            heads.append(model.get_submodule("classifier").weight.detach().clone())  # type: ignore[operator]
            assert read.length == 64  # of 128 that were resolved, the model has positions for so many
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.get_rng_state(), before)
