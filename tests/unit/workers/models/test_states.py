"""States at the layers that the blocks define: read, laid out, checked and edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from layerdrift.contract.errors import InputError
from tests.builders.families import BLOCKS, FAMILIES, made
from tests.builders.models import HIDDEN, tiny_bert
from workers.models.states import StateReader, hidden_states
from workers.models.texts import Batch


def batch_of(texts: int = 3, tokens: int = 6, padding: bool = True) -> Batch:
    """Tokens that every small vocabulary has; the last text is two tokens shorter where there is padding."""
    ids = 5 + torch.arange(texts * tokens).view(texts, tokens) * 7 % 30
    mask = torch.ones_like(ids)
    if padding:
        mask[-1, -2:] = 0
    return Batch(ids * mask, mask, mask.bool(), list(range(texts)))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_states_are_those_that_the_model_lists_itself(family: str) -> None:
    model, batch = made(family, 0).eval(), batch_of(padding=False)
    with torch.no_grad():
        listed = model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
    found = hidden_states(model, batch)
    assert len(found) == BLOCKS + 1
    for state, expected in zip(found, listed, strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)


def test_a_reader_knows_the_shape_of_its_models() -> None:
    assert StateReader.of(tiny_bert(blocks=2), "/base/uri") == StateReader(3, HIDDEN)


def replace_block(model: PreTrainedModel, number: int, change: Any) -> None:
    """Changes what a block of a BERT passes on."""
    encoder: Any = model.encoder

    def changed(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    encoder.layer[number - 1].register_forward_hook(changed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_not_finite_name_the_model_and_the_layer(value: float) -> None:
    model = tiny_bert()
    replace_block(model, 2, lambda state: state * value)
    with pytest.raises(InputError, match="of the tuned model are NaN or infinite at layer 2") as raised:
        StateReader.of(model, "/tuned/uri")
    assert raised.value.errors[0].pointer == "/tuned/uri"


def test_a_layer_whose_states_have_another_width_is_said() -> None:
    model = tiny_bert()
    layers: Any = model.encoder
    layers.layer[2].register_forward_pre_hook(lambda _, args: (args[0][..., :HIDDEN], *args[1:]))
    replace_block(model, 2, lambda state: torch.cat([state, state], dim=-1))
    with pytest.raises(InputError, match=r"have width 32 up to the last block, but 64 at layer 2"):
        StateReader.of(model, "/base/uri")


def test_a_model_that_leaves_a_block_out_is_refused_at_its_place() -> None:
    model = tiny_bert()
    skipped: Any = model.encoder

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=skipped.layer[0](hidden_states))

    skipped.forward = forward
    with pytest.raises(InputError) as raised:
        StateReader.of(model, "/base/uri")
    assert [one.pointer for one in raised.value.errors] == ["/base/uri"]


def test_blocks_that_pass_on_tokens_before_texts_are_read_in_the_usual_order() -> None:
    reader = StateReader(1, 4, order=(1, 0, 2))
    state = torch.arange(5 * 2 * 4.0).view(5, 2, 4)  # five tokens of two texts
    found = reader.standard(state, 3)
    assert found.shape == (2, 3, 4)
    assert torch.equal(found[1, 2], state[2, 1])


def test_a_reader_that_must_read_without_padding_gives_each_text_what_it_has_alone() -> None:
    model, batch = tiny_bert(), batch_of()
    whole = StateReader(4, HIDDEN, reads_padding=True).states(model, batch)
    for row in range(3):
        length = int(batch.attention_mask[row].sum())
        alone = hidden_states(model, batch.rows(torch.tensor([row]), length))
        for state, expected in zip(whole, alone, strict=True):
            torch.testing.assert_close(state[row, :length], expected[0], rtol=1e-4, atol=1e-5)
            assert not bool(state[row, length:].any())


def doubled(rows: Tensor) -> Tensor:
    return 2 * rows


CHOSEN = torch.tensor([[False, True, False, False, False, False], [False] * 6, [False] * 6])


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "deberta-v2"])
@pytest.mark.parametrize("layer", [0, 1, BLOCKS])
def test_an_edit_changes_the_chosen_tokens_at_its_layer_and_only_later_layers(family: str, layer: int) -> None:
    model, batch = made(family, 0).eval(), batch_of(padding=False)
    reader = StateReader.of(model, "/base/uri")
    before = reader.states(model, batch)
    with reader.edited(model, layer, doubled, CHOSEN), torch.inference_mode():
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    expected = before[-1].clone()
    if layer == BLOCKS:
        expected[CHOSEN] *= 2
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    else:
        assert not torch.allclose(output[0], before[-1][0], atol=1e-3)
    torch.testing.assert_close(output[1:], before[-1][1:], rtol=1e-4, atol=1e-5)
    for state, same in zip(reader.states(model, batch), before, strict=True):  # the hook is gone
        assert torch.equal(state, same)


def test_an_edit_that_changes_nothing_leaves_the_output() -> None:
    model, batch = tiny_bert(), batch_of(padding=False)
    reader = StateReader.of(model, "/base/uri")
    every = torch.ones(3, 6, dtype=torch.bool)
    with reader.edited(model, 2, lambda rows: rows, every), torch.inference_mode():
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    torch.testing.assert_close(output, reader.states(model, batch)[-1])


def test_the_rows_of_an_edit_are_the_states_of_the_chosen_tokens() -> None:
    model, batch, seen = tiny_bert(), batch_of(padding=False), []
    reader = StateReader.of(model, "/base/uri")
    before = reader.states(model, batch)

    def look(rows: Tensor) -> Tensor:
        seen.append(rows.clone())
        return rows

    chosen = torch.zeros(3, 6, dtype=torch.bool)
    chosen[0, 3] = chosen[2, 1] = True
    with reader.edited(model, 1, look, chosen), torch.inference_mode():
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    (rows,) = seen
    torch.testing.assert_close(rows, before[1][chosen])


def test_an_edit_that_fails_leaves_no_hook_behind() -> None:
    model, batch = tiny_bert(), batch_of(padding=False)
    reader = StateReader.of(model, "/base/uri")

    def broken(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    every = torch.ones(3, 6, dtype=torch.bool)
    with pytest.raises(ZeroDivisionError), reader.edited(model, 1, broken, every):
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    reader.states(model, batch)


def test_the_check_leaves_torchs_mode_as_it_was() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    StateReader.of(tiny_bert(), "/base/uri")
    assert not torch.are_deterministic_algorithms_enabled()
