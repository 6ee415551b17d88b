"""Objectives of language models beside their definitions, token by token; order, accumulation, what is trained."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import GPT2Config, GPT2LMHeadModel

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import FineTune
from tests.builders.chats import language_model, resolved_chats
from tests.builders.families import made
from tests.stages.test_layered import with_head
from workers.models.device import best_device
from workers.models.loading import load_headed
from workers.models.tokenizers import load_tokenizer
from workers.stages.common.training import Recipe, Step
from workers.stages.finetune.language import (
    AnswerData,
    PreferenceData,
    answer_log_probs,
    language_data,
    token_log_probs,
    without_dropout,
)
from workers.stages.finetune.sequences import TokenSequence, padded


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(base: Path) -> Any:
    headed = load_headed(base, "/base/uri", best_device())
    assert headed is not None
    return headed.model


def settings(**changes: Any) -> FineTune:
    return FineTune.model_validate({"objective": "sft", "batch_size": 4, "precision": "float32", **changes})


def data(base: Path, asked: FineTune) -> Any:
    given = resolved_chats(base, texts=20, train=12, held_out=6, preferences=asked.objective == "dpo")
    return language_data(load_tokenizer(base, "/base/uri"), given.split, asked)


def naive(model: Any, one: TokenSequence) -> list[float]:
    """Log-probability of every token to give, from the whole logits of the row alone."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
    return [float(found[place - 1, token]) for place, token in enumerate(one.ids) if one.asked[place]]


def test_log_probabilities_are_those_of_the_row_alone(base: Path, model: Any) -> None:
    rows = data(base, settings()).train[:5]
    found = token_log_probs(model, padded(rows))
    for number, row in enumerate(rows):
        assert found.values[found.rows == number].tolist() == pytest.approx(naive(model, row), abs=1e-5)


def test_a_model_that_keeps_all_logits_gives_the_same(base: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = padded(data(base, settings()).train[:5])
    expected = token_log_probs(model, rows)
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda input_ids, attention_mask, use_cache: forward(input_ids, attention_mask)
    )
    torch.testing.assert_close(token_log_probs(model, rows).values, expected.values, atol=1e-6, rtol=1e-5)


def test_the_loss_is_the_mean_over_all_tokens_of_a_step(base: Path, model: Any) -> None:
    asked = settings(gradient_accumulation=3)
    given = data(base, asked)
    assert isinstance(given, AnswerData)
    task = given.task(model, Recipe.of(asked, 0))
    step: Step[Any] = next(iter(task.steps()))
    assert len(step.parts) == 3
    found = sum(float(task.loss(part, step).detach()) for part in step.parts)
    values = [value for part in step.parts for row in part for value in naive(model, given.train[row])]
    assert found == pytest.approx(-sum(values) / len(values), abs=1e-5)


def test_the_preference_loss_is_its_definition(base: Path, model: Any) -> None:
    asked = settings(objective="dpo", beta=0.5)
    given = data(base, asked)
    assert isinstance(given, PreferenceData)
    task = given.task(model, Recipe.of(asked, 0))
    before = {id(pair): [sum(naive(model, one)) for one in pair] for pair in given.train}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    step: Step[Any] = next(iter(task.steps()))
    margins = []
    for pair in (given.train[row] for row in step.parts[0]):
        after = [sum(naive(model, one)) for one in pair]
        chosen, rejected = (new - old for new, old in zip(after, before[id(pair)], strict=True))
        margins.append(0.5 * (chosen - rejected))
    expected = -float(logsigmoid(torch.tensor(margins)).mean())
    assert float(task.loss(step.parts[0], step).detach()) == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(0.6931, abs=1e-3)  # the model moved


def test_a_model_that_did_not_move_prefers_nothing(base: Path, model: Any) -> None:
    asked = settings(objective="dpo")
    task = data(base, asked).task(model, Recipe.of(asked, 0))
    step: Step[Any] = next(iter(task.steps()))
    assert float(task.loss(step.parts[0], step).detach()) == pytest.approx(0.693147, abs=1e-5)
    found = task.evaluate(0)
    assert (found.loss, found.accuracy) == (pytest.approx(0.693147, abs=1e-5), 0.0)


def test_preferences_are_trained_without_dropout(base: Path) -> None:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    )
    asked = settings(objective="dpo")
    task = data(base, asked).task(model, Recipe.of(asked, 0))
    model.train()
    step: Step[Any] = next(iter(task.steps()))
    assert float(task.loss(step.parts[0], step).detach()) == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropout_is_switched_off_in_modules_and_in_attention(family: str) -> None:
    model: Any = with_head(made(family, 0))
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    without_dropout(model)
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    model.train()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_rows_are_cut_where_the_model_has_no_more_positions(base: Path) -> None:
    given = resolved_chats(base, texts=20, train=12, held_out=6)
    tokenizer, split = load_tokenizer(base, "/base/uri"), given.split
    whole = language_data(tokenizer, split, settings())
    assert isinstance(whole, AnswerData)
    longest = max(len(one.ids) for one in whole.train)
    short = language_data(tokenizer, split, settings(), positions=longest - 1)
    assert isinstance(short, AnswerData)
    assert max(len(one.ids) for one in short.train) == longest - 1
    with pytest.raises(InputError, match=f"the model reads at most {longest} tokens") as raised:
        language_data(tokenizer, split, settings(max_length=longest + 1), positions=longest)
    assert raised.value.errors[0].pointer == "/finetune/max_length"


def test_a_token_that_the_model_does_not_know_is_an_error(model: Any) -> None:
    with pytest.raises(InputError, match="the tokenizer produces token 5000"):
        token_log_probs(model, padded([TokenSequence([5, 5_000], [False, True])]))


def test_held_out_answers_are_measured_by_token(base: Path, model: Any) -> None:
    given = data(base, settings())
    found = given.task(model, Recipe.of(settings(), 0)).evaluate(7)
    values = [value for one in given.held_out for value in naive(model, one)]
    assert found.step == 7
    assert found.loss == pytest.approx(-sum(values) / len(values), abs=1e-5)
    assert 0 <= found.accuracy <= 1


def test_every_row_comes_once_an_epoch_in_an_order_of_the_seed(base: Path, model: Any) -> None:
    given = data(base, settings(epochs=2))

    def order(seed: int) -> list[list[int]]:
        steps = given.task(model, Recipe.of(settings(epochs=2), seed)).steps()
        return [row for step in steps for row in step.parts]

    assert order(0) == order(0) != order(1)
    first, second = order(0)[:3], order(0)[3:]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(12))
    assert first != second


def test_sums_of_answers_are_by_pair(base: Path, model: Any) -> None:
    pairs = data(base, settings(objective="dpo")).train[:3]
    with torch.no_grad():
        found = answer_log_probs(model, pairs)
    expected = [[sum(naive(model, one)) for one in pair] for pair in pairs]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=1e-4)
