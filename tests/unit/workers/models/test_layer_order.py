"""Passes that go block by block, against the same model run whole."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.builders.families import BLOCKS, OF_FAMILIES, made
from workers.models.blockwise import BlockFiles
from workers.models.layer_order import Pass
from workers.models.states import StateReader
from workers.models.structure import NotBlockwise
from workers.models.texts import Batch

CPU = torch.device("cpu")


def batch(texts: int, tokens: int, start: int, padded: bool = True) -> Batch:
    ids = (5 + start + torch.arange(texts * tokens) * 7 % 30).view(texts, tokens)
    mask = torch.ones_like(ids)
    if padded:
        mask[-1, -2:] = 0
    return Batch(ids * mask, mask, mask.bool(), list(range(texts)))


BATCHES = [batch(3, 6, 0), batch(2, 9, 3), batch(1, 4, 7, padded=False)]


def opened(model: Any, folder: Path) -> BlockFiles:
    model.save_pretrained(folder)
    return BlockFiles(folder, "/base/uri", CPU)


def walked(blockwise: BlockFiles, reader: StateReader, **options: bool) -> list[list[torch.Tensor]]:
    found = Pass(blockwise, BATCHES, reader, **options)
    found.start()
    layers = [found.states]
    while found.layer < blockwise.depth:
        with blockwise.block(found.layer):
            found.advance()
        layers.append(found.states)
    found.close()
    return layers


@pytest.mark.parametrize("family", OF_FAMILIES)
def test_the_states_are_those_of_the_whole_model_to_the_last_bit(family: str, tmp_path: Path) -> None:
    model = made(family, 0).eval()
    reader = StateReader.of(model, "")
    layers = walked(opened(model, tmp_path), reader)
    assert len(layers) == BLOCKS + 1
    for number, one in enumerate(BATCHES):
        for layer, expected in enumerate(reader.states(model, one)):
            assert torch.equal(layers[layer][number], expected), (layer, number)


def test_a_pass_tells_how_many_batches_went_through_a_block(tmp_path: Path) -> None:
    blockwise = opened(made("bert", 0).eval(), tmp_path)
    found = Pass(blockwise, BATCHES, StateReader(BLOCKS + 1, 16), checked=False)
    found.start()
    seen: list[int] = []
    with blockwise.block(0):
        found.advance(seen.append)
    assert seen == [1, 2, 3]
    found.close()
    assert found.states == []


def test_blocks_keep_their_own_forward_between_steps(tmp_path: Path) -> None:
    blockwise = opened(made("bert", 0).eval(), tmp_path)
    found = Pass(blockwise, BATCHES, StateReader(BLOCKS + 1, 16))
    found.start()
    assert all("forward" not in vars(block) for block in blockwise.blocks)
    found.close()


def collected(_: int) -> None:
    gc.collect()


def test_passes_whose_memory_is_taken_back_beside_another_one_do_not_disturb_it(tmp_path: Path) -> None:
    model = made("llama", 0).eval()
    reader, blockwise = StateReader.of(model, ""), opened(model, tmp_path)
    expected = walked(blockwise, reader)
    left = Pass(blockwise, BATCHES, reader)
    left.start()
    found = Pass(blockwise, BATCHES, reader)
    found.start()
    left.close()
    del left
    for layer in range(BLOCKS):
        with blockwise.block(layer):
            found.advance(collected)
    for one, other in zip(found.states, expected[-1], strict=True):
        assert torch.equal(one, other)
    found.close()


def test_states_that_depend_on_what_runs_beside_them_are_refused(tmp_path: Path) -> None:
    """A block that remembers how often it ran, as a model that keeps a state between blocks would."""
    blockwise = opened(made("bert", 0).eval(), tmp_path)
    runs = [0]

    def louder(_: Any, __: Any, output: Any) -> Any:
        runs[0] += 1
        state = output[0] if isinstance(output, tuple) else output
        return (state * runs[0], *output[1:]) if isinstance(output, tuple) else state * runs[0]

    blockwise.blocks[1].register_forward_hook(louder)
    with pytest.raises(NotBlockwise, match="depend on the texts that run beside it"):
        walked(blockwise, StateReader(BLOCKS + 1, 16))


def test_blocks_that_do_not_run_in_order_are_refused(tmp_path: Path) -> None:
    blockwise = opened(made("bert", 0).eval(), tmp_path)
    first, second, third = blockwise.blocks
    blockwise.blocks = nn.ModuleList([first, third, second])  # the model runs them otherwise
    found = Pass(blockwise, BATCHES, StateReader(BLOCKS + 1, 16))
    found.start()
    with pytest.raises(NotBlockwise, match="do not run once each, one after another"), blockwise.block(0):
        found.advance()
    found.close()


def test_a_weight_that_is_not_there_is_no_number(tmp_path: Path) -> None:
    blockwise = opened(made("bert", 0).eval(), tmp_path)
    found = Pass(blockwise, BATCHES, StateReader(BLOCKS + 1, 16))
    found.start()
    with pytest.raises(NotBlockwise, match="needs a weight that belongs to no block"):
        found.advance()  # block 1 was not read
    found.close()
