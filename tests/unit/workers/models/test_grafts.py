"""Parts of the base model in the tuned one's place, and out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.builders.heads import causal_lm, classifier
from tests.builders.models import BLOCKS, add_noise, tiny_bert
from workers.models.grafts import BaseWeights, untied
from workers.models.states import hidden_states
from workers.models.texts import Batch


def batch() -> Batch:
    ids = 5 + torch.arange(12).view(2, 6)
    return Batch(ids, torch.ones_like(ids), torch.ones_like(ids).bool(), [0, 1])


def values(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def weights(tmp_path: Path) -> BaseWeights:
    return BaseWeights(tiny_bert(0), tmp_path / "grafts")


def test_with_the_base_models_first_layers_the_states_up_to_there_are_the_base_models(weights: BaseWeights) -> None:
    tuned, base_states = tiny_bert(1), hidden_states(tiny_bert(0), batch())
    own = hidden_states(tuned, batch())
    for layer in range(BLOCKS + 1):
        with weights.grafted(tuned, weights.prefix[layer]):
            found = hidden_states(tuned, batch())
        assert [torch.allclose(one, other, atol=1e-5) for one, other in zip(found, base_states, strict=True)] == [
            index <= layer for index in range(BLOCKS + 1)
        ]
    for one, other in zip(hidden_states(tuned, batch()), own, strict=True):
        assert torch.equal(one, other)


def test_a_block_alone_is_grafted_alone(weights: BaseWeights) -> None:
    tuned, base = tiny_bert(1), values(tiny_bert(0))
    before = values(tuned)
    with weights.grafted(tuned, weights.block[2]):
        inside = values(tuned)
    for name, value in inside.items():
        assert torch.equal(value, base[name] if name.startswith("encoder.layer.1.") else before[name]), name


def test_the_tuned_models_own_weights_come_back_after_an_error(weights: BaseWeights) -> None:
    tuned = tiny_bert(1)
    before = values(tuned)
    with pytest.raises(ZeroDivisionError), weights.grafted(tuned, weights.prefix[2]):
        raise ZeroDivisionError
    with pytest.raises(KeyError), weights.grafted(tuned, [*weights.block[1], "no.such.weight"]):
        pass
    after = values(tuned)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("longer", [0, 1], ids=["the base model has more", "the tuned model has more"])
def test_of_embedding_tables_of_two_lengths_the_common_rows_are_taken(tmp_path: Path, longer: int) -> None:
    base, tuned = models = tiny_bert(0), tiny_bert(1)
    name = "embeddings.word_embeddings.weight"
    common = len(values(base)[name])
    with torch.random.fork_rng():
        models[longer].resize_token_embeddings(common + 3, mean_resizing=False)
    own = values(tuned)[name]
    weights = BaseWeights(base, tmp_path / "uneven")
    with weights.grafted(tuned, weights.block[0]):
        inside = values(tuned)[name]
    assert torch.equal(inside[:common], values(base)[name][:common])
    assert torch.equal(inside[common:], own[common:])
    assert torch.equal(values(tuned)[name], own)


def test_parts_that_are_the_same_bit_by_bit_are_known(weights: BaseWeights) -> None:
    tuned = tiny_bert(0)
    assert weights.same(tuned, weights.prefix[BLOCKS])
    add_noise(tuned, 2, scale=1e-6)
    assert [weights.same(tuned, names) for names in weights.block] == [True, True, False, True]
    assert [weights.same(tuned, names) for names in weights.prefix] == [True, True, False, False]


def test_a_tied_head_gets_a_copy_that_embeddings_no_longer_move() -> None:
    model = causal_lm()
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    assert untied(model)
    assert torch.equal(head.weight, embeddings.weight)
    with torch.no_grad():
        embeddings.weight.add_(1.0)
    assert not torch.equal(head.weight, embeddings.weight)
    assert not untied(model)


def test_a_model_without_a_head_over_tokens_has_nothing_to_untie() -> None:
    assert not untied(classifier())
