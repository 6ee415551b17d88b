"""Models of which one block at a time has weights, read from files as people have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AlbertConfig, AlbertModel, AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeModel

from layerdrift.contract.errors import InputError
from tests.builders.families import BLOCKS, OF_FAMILIES, made
from workers.models.blockwise import BlockFiles, usable_dtype
from workers.models.device import fast_dtype
from workers.models.structure import NotBlockwise

CPU = torch.device("cpu")


def opened(folder: Path, dtype: torch.dtype | None = None) -> BlockFiles:
    return BlockFiles(folder, "/tuned/uri", CPU, dtype)


def saved(model: Any, folder: Path, shard: str = "5GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.mark.parametrize("family", OF_FAMILIES)
@pytest.mark.parametrize("shard", ["5GB", "8KB"])
def test_a_block_has_its_weights_inside_and_none_outside(family: str, shard: str, tmp_path: Path) -> None:
    model = made(family, 0)
    found = opened(saved(model, tmp_path, shard))
    assert found.depth == BLOCKS
    expected = dict(model.named_parameters())
    seen = {name for name, one in found.model.named_parameters() if not one.is_meta}
    for number in range(BLOCKS):
        assert any(one.is_meta for one in found.blocks[number].parameters())
        with found.block(number) as block:
            assert not any(one.is_meta for one in block.parameters())
            here = {name: one for name, one in found.model.named_parameters() if not one.is_meta}
            seen |= here.keys()
            for name, one in here.items():
                assert torch.equal(one, expected[name]), name
        assert any(one.is_meta for one in found.blocks[number].parameters())
    assert seen == expected.keys()
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert 0.5 * stored < found.tensors.bytes_read <= stored  # each once


def test_the_names_of_a_checkpoint_with_a_head_are_found(tmp_path: Path) -> None:
    body = made("llama", 0)
    whole: Any = AutoModelForCausalLM.from_config(body.config)
    whole.model.load_state_dict(body.state_dict())
    found = opened(saved(whole, tmp_path))
    with found.block(1) as block:
        expected = body.get_parameter("layers.1.mlp.up_proj.weight")
        assert torch.equal(block.get_parameter("mlp.up_proj.weight"), expected)


def test_fused_experts_are_made_of_the_files_tensors(tmp_path: Path) -> None:
    small: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Qwen3MoeConfig(**small, **heads, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2)
    torch.manual_seed(0)
    model = Qwen3MoeModel(config)
    folder = saved(model, tmp_path)
    assert any(".experts.3." in name for name in load_file(folder / "model.safetensors"))
    found = opened(folder)
    with found.block(1) as block:
        for name, one in model.layers[1].named_parameters():
            assert torch.equal(one, block.get_parameter(name)), name


def change(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


DOWN = "layers.1.mlp.down_proj.weight"


def without(tensors: dict[str, Tensor]) -> None:
    del tensors[DOWN]


def transposed(tensors: dict[str, Tensor]) -> None:
    tensors[DOWN] = tensors[DOWN].T.contiguous()


def one_more(tensors: dict[str, Tensor]) -> None:
    tensors["layers.1.mlp.gate2.weight"] = torch.ones(3)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without, "lack 1 tensors that config.json requires, first layers.1.mlp.down_proj.weight"),
        (transposed, "does not have the shape that config.json requires: layers.1.mlp.down_proj.weight"),
        (one_more, "contain 1 tensors that the model of config.json does not use"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_runs(
    edit: Callable[[dict[str, Tensor]], None], words: str, tmp_path: Path
) -> None:
    folder = saved(made("llama", 0), tmp_path)
    change(folder, edit)
    with pytest.raises(InputError, match=words) as raised:
        opened(folder)
    assert raised.value.errors[0].pointer == "/tuned/uri"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_when_its_block_is_read(value: float, tmp_path: Path) -> None:
    folder = saved(made("llama", 0), tmp_path)

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN].view(-1)[7] = value

    change(folder, spoil)
    found = opened(folder)
    with found.block(0):
        pass
    with pytest.raises(InputError, match=r"the weight layers\.1.mlp.down_proj.weight contains NaN or infinite"):
        found.fill(1)


def test_an_index_that_lies_about_its_shards_is_refused(tmp_path: Path) -> None:
    folder = saved(made("llama", 0), tmp_path, "8KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = sorted(set(index["weight_map"].values()))
    index["weight_map"][DOWN] = next(name for name in names if name != index["weight_map"][DOWN])
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names 1 tensors that are not in the file it says, first layers\.1"):
        opened(folder)


@pytest.mark.parametrize("cut", [100, 4000])
def test_a_shard_that_is_shorter_than_it_says_is_refused(cut: int, tmp_path: Path) -> None:
    folder = saved(made("llama", 0), tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"the weights could not be loaded: model.safetensors"):
        opened(folder)


def test_blocks_that_share_their_weights_do_not_run_one_at_a_time(tmp_path: Path) -> None:
    config = AlbertConfig(
        vocab_size=60, embedding_size=16, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    with pytest.raises(NotBlockwise, match="blocks of AlbertModel could not be found"):
        opened(saved(AlbertModel(config), tmp_path))


def test_stand_ins_run_the_whole_model_and_leave_nothing(tmp_path: Path) -> None:
    model = made("llama", 0).eval()
    found = opened(saved(model, tmp_path))
    ids = torch.arange(3, 9)[None]
    with found.stand_ins() as whole, torch.no_grad():
        state = whole(input_ids=ids).last_hidden_state
    assert bool(torch.isfinite(state).all())
    assert all(one.is_meta for one in found.blocks.parameters())


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, fast_dtype(CPU)),
    ],
)
def test_weights_run_in_their_own_precision_where_the_device_multiplies_it(
    stored: torch.dtype, expected: torch.dtype, tmp_path: Path
) -> None:
    assert usable_dtype(stored, CPU) == expected
    found = opened(saved(made("llama", 0).to(stored), tmp_path))  # type: ignore[arg-type]
    with found.block(0) as block:
        assert {one.dtype for one in block.parameters()} == {expected}


def test_half_precision_on_a_gpu_stays_as_it_is() -> None:
    assert usable_dtype(torch.float16, torch.device("cuda")) == torch.float16
