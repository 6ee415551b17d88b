from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    PreTrainedModel,
)

from layerdrift.contract.errors import InputError
from tests.builders.families import BLOCKS, DECODERS, FAMILIES, WIDE
from workers.models.structure import blocks_of, is_causal, parameters_before, weight_groups


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = FAMILIES[request.param]()
    found.eval()
    return found


def test_blocks_are_found_by_structure(model: PreTrainedModel) -> None:
    assert len(blocks_of(model)) == BLOCKS


def test_causality_is_seen_in_behaviour(model: PreTrainedModel) -> None:
    assert is_causal(model) is (model.config.model_type in DECODERS)


@pytest.mark.parametrize("frozen", range(BLOCKS + 1))
def test_training_all_but_the_first_blocks_leaves_their_states_alone(model: PreTrainedModel, frozen: int) -> None:
    ids = torch.randint(1, 60, (4, 9), generator=torch.Generator().manual_seed(1))

    def states() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            found: tuple[torch.Tensor, ...] = model(input_ids=ids, output_hidden_states=True).hidden_states
            return found

    before = states()
    kept = {id(parameter) for parameter in parameters_before(model, frozen)}
    with torch.no_grad():
        saved = [parameter.clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            if id(parameter) not in kept:
                parameter.add_(0.1)
    after = states()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), saved, strict=True):
            parameter.copy_(value)
    unchanged = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert unchanged == [index <= frozen for index in range(BLOCKS + 1)]


def test_every_weight_of_a_block_belongs_to_one_part(model: PreTrainedModel) -> None:
    embeddings, *blocks = weight_groups(model)
    names = [name for groups in (embeddings, *blocks) for part in groups.values() for name in part]
    assert len(names) == len(set(names))
    assert [set(groups) for groups in blocks] == [{"attention", "mlp", "norm"}] * BLOCKS
    inside = {name for groups in blocks for part in groups.values() for name in part}
    of_blocks = {id(parameter) for block in blocks_of(model) for parameter in block.parameters()}
    assert inside == {name for name, parameter in model.named_parameters() if id(parameter) in of_blocks}
    assert all("norm" in name.lower() or "ln_" in name for groups in blocks for name in groups["norm"])
    assert any("embed" in name or "wte" in name or "shared" in name for name in embeddings["embeddings"])


def test_more_blocks_than_there_are_cannot_be_frozen(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="has 3 blocks; 4 of them cannot be frozen"):
        parameters_before(model, BLOCKS + 1)


def test_looking_leaves_no_gradient_behind(model: PreTrainedModel) -> None:
    parameters_before(model, 1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_whose_blocks_cannot_be_found_gets_a_clear_error() -> None:
    class Odd(nn.Module):
        config = BertConfig(**WIDE)

    with pytest.raises(InputError, match="blocks of Odd could not be found: 0 module lists"):
        blocks_of(Odd())
