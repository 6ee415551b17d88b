"""Completions: what is sampled, and its probability by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.builders.families import made
from tests.stages.test_layered import with_head
from workers.stages.learned import completions
from workers.stages.learned.completions import LEAST_TOKENS, Scored, log_probs, sampled
from workers.stages.learned.prompts import Prompt

PROMPTS = [Prompt("general", str(number), [5 + number] * (1 + number % 3)) for number in range(7)]


@pytest.fixture(scope="module")
def model() -> Any:
    return with_head(made("llama", 0)).eval()


def test_the_same_seed_writes_the_same_and_another_one_does_not(model: Any) -> None:
    found = sampled(model, PROMPTS, 12, 1, 60)
    assert sampled(model, PROMPTS, 12, 1, 60) == found
    assert sampled(model, PROMPTS, 12, 2, 60) != found
    assert max(len(one) for one in found) == 12


def test_sampling_leaves_the_global_generator_alone(model: Any) -> None:
    before = torch.random.get_rng_state()
    sampled(model, PROMPTS, 4, 1, 60)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_completion_ends_before_the_end_token_and_before_tokens_of_one_model_alone(model: Any) -> None:
    found = sampled(model, PROMPTS * 20, 12, 1, 60)
    model.generation_config.eos_token_id = [found[0][2]]
    try:
        ended = sampled(model, PROMPTS * 20, 12, 1, 60)
    finally:
        model.generation_config.eos_token_id = None
    assert all(found[0][2] not in one for one in ended)
    assert any(len(one) < 12 for one in ended)
    assert all(max(one, default=0) < 20 for one in sampled(model, PROMPTS, 12, 1, 20))


def test_no_completion_runs_past_the_models_positions(model: Any) -> None:
    known = model.config.max_position_embeddings
    long = Prompt("general", "", [5] * (known - 3))
    assert [len(one) <= 3 for one in sampled(model, [long], 12, 1, 60)] == [True]
    assert sampled(model, [Prompt("general", "", [5] * known)], 12, 1, 60) == [[]]


def test_tokens_of_the_tokenizer_end_a_completion_too(model: Any) -> None:
    found = sampled(model, PROMPTS * 20, 12, 1, 60)
    ended = sampled(model, PROMPTS * 20, 12, 1, 60, ends=[found[0][1]])
    assert all(found[0][1] not in one for one in ended)


def test_what_is_sampled_follows_the_models_distribution(model: Any) -> None:
    """The first tokens of many completions of one prompt, against softmax."""
    prompt = Prompt("general", "", [7, 9])
    found = sampled(model, [prompt] * 4000, 1, 3, 60)
    counts = torch.bincount(torch.tensor([one[0] for one in found if one]), minlength=60).double()
    with torch.inference_mode():
        wanted = model(torch.tensor([[7, 9]])).logits[0, -1].double().softmax(-1) * 4000
    statistic = float(((counts - wanted).square() / wanted).sum())
    assert statistic < 59 + 5 * math.sqrt(2 * 59)


def test_log_probabilities_are_those_of_one_text_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "SCORED_TOGETHER", 3)
    written = [[3, 4, 5, 6], [7], [], [8, 9], [10, 11, 12], [13], [14, 15]]
    found = log_probs(model, PROMPTS, written, 60)
    for prompt, tokens, own in zip(PROMPTS, written, found, strict=True):
        ids = torch.tensor([[*prompt.ids, *tokens]])
        with torch.inference_mode():
            alone = model(ids).logits[0].log_softmax(-1)
        wanted = [float(alone[len(prompt.ids) - 1 + place, token]) for place, token in enumerate(tokens)]
        assert own.tolist() == pytest.approx(wanted, abs=1e-5)
    few = log_probs(model, PROMPTS[:1], [[3]], 30)[0]
    with torch.inference_mode():
        alone = model(torch.tensor([[*PROMPTS[0].ids]])).logits[0, -1, :30].log_softmax(-1)
    assert float(few[0]) == pytest.approx(float(alone[3]), abs=1e-5)


def test_a_score_is_the_mean_gain_and_few_tokens_have_none() -> None:
    assert Scored(PROMPTS[0], [1, 2, 3, 4], [1.0, 2.0, 3.0, 2.0]).score == 2.0
    assert Scored(PROMPTS[0], [1] * (LEAST_TOKENS - 1), [9.0] * (LEAST_TOKENS - 1)).score == 0.0
    assert Scored(PROMPTS[0], [], []).score == 0.0
