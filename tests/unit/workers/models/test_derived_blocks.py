"""The rounded twin and the model that was never trained, block by block."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralModel

from tests.builders.families import BLOCKS, OF_FAMILIES, WIDE, made
from workers.models.blockwise import BlockFiles
from workers.models.derived_blocks import (
    CHANGED_RANK,
    DITHER,
    DitheredBlocks,
    PerturbedBlocks,
    RandomBlocks,
    _changed,
    perturbed_head,
)

CPU = torch.device("cpu")


@pytest.fixture
def original(tmp_path: Path) -> BlockFiles:
    made("llama", 0).save_pretrained(tmp_path)
    return BlockFiles(tmp_path, "/base/uri", CPU)


def test_a_twin_is_the_original_moved_by_less_than_two_spacings(original: BlockFiles) -> None:
    twin = DitheredBlocks(original, range(60))
    moved = 0
    for number in range(BLOCKS):
        with original.block(number) as block, twin.block(number) as other:
            for name, weight in block.named_parameters():
                found = other.get_parameter(name)
                assert found.dtype == torch.bfloat16
                spacing = torch.ldexp(torch.ones_like(weight), torch.frexp(weight).exponent - 8)
                assert bool(((found.float() - weight).abs() <= (DITHER + 1) * spacing).all()), name
                moved += int((found.float() != weight.bfloat16().float()).sum())
        assert all(one.is_meta for one in twin.blocks[number].parameters())
    assert moved > 0


def test_two_twins_are_the_same(original: BlockFiles) -> None:
    one, other = DitheredBlocks(original, range(60)), DitheredBlocks(original, range(60))
    with original.block(0), one.block(0) as first, other.block(0) as second:
        for name, weight in first.named_parameters():
            assert torch.equal(weight, second.get_parameter(name))


@pytest.mark.parametrize("family", OF_FAMILIES)
def test_random_weights_are_drawn_like_those_of_a_new_model(family: str, tmp_path: Path) -> None:
    trained = made(family, 0)
    trained.save_pretrained(tmp_path)
    found = RandomBlocks(BlockFiles(tmp_path, "/base/uri", CPU), torch.float32, seed=3, tokens=range(60))
    fresh = type(trained)(trained.config)
    for number in range(BLOCKS):
        with found.block(number) as block:
            for name, one in fresh.named_parameters():
                if name not in dict(found.model.named_parameters()):
                    continue
                drawn = found.model.get_parameter(name)
                if drawn.is_meta:
                    continue
                assert bool(torch.isfinite(drawn).all()), name
                if one.numel() >= 200:  # enough for its spread to be known
                    assert float(drawn.std()) == pytest.approx(float(one.detach().std()), rel=0.35, abs=1e-6), name
            assert not any(weight.is_meta for weight in block.parameters())


def test_random_weights_depend_on_the_seed_and_the_block_alone(original: BlockFiles) -> None:
    def weights(seed: int, number: int) -> torch.Tensor:
        drawn = RandomBlocks(original, torch.float32, seed, range(60))
        with drawn.block(number) as block:
            return block.get_parameter("mlp.up_proj.weight").clone()

    assert torch.equal(weights(0, 1), weights(0, 1))
    assert not torch.equal(weights(0, 1), weights(1, 1))
    assert not torch.equal(weights(0, 1), weights(0, 2))


def test_a_perturbed_model_is_changed_at_random_by_as_much_as_the_tuned_one(
    original: BlockFiles, tmp_path: Path
) -> None:
    model = made("llama", 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".1." in name:  # one block, its norms too
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    model.save_pretrained(tmp_path / "tuned")
    tuned = BlockFiles(tmp_path / "tuned", "/tuned/uri", CPU)
    one, again, other = (PerturbedBlocks(original, tuned, seed) for seed in (0, 0, 1))
    for number in range(BLOCKS):
        with ExitStack() as inside:
            sides = (original, tuned, one, again, other)
            base, moved, first, second, third = (inside.enter_context(side.block(number)) for side in sides)
            for name, weight in base.named_parameters():
                found, wanted = first.get_parameter(name), moved.get_parameter(name)
                assert torch.equal(found, second.get_parameter(name))
                if number != 1:
                    assert torch.equal(found, weight), name
                    continue
                change = (found - weight).detach()
                assert float(change.norm()) == pytest.approx(float((wanted - weight).detach().norm()), rel=1e-4)
                assert weight.ndim == 1 or int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= CHANGED_RANK
                assert not torch.equal(found, third.get_parameter(name))
    assert one.model.get_input_embeddings().weight is original.model.get_input_embeddings().weight


def test_each_matrix_of_a_stack_is_changed_by_as_much_as_in_the_tuned_model(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_local_experts": 3, "num_experts_per_tok": 2}
    config = MixtralConfig(**{**WIDE, "num_hidden_layers": 1, **sizes})
    torch.manual_seed(0)
    model = MixtralModel(config)
    model.save_pretrained(tmp_path / "base")
    stacks = [name for name, one in model.layers[0].named_parameters() if one.ndim == 3]
    assert stacks  # experts in one tensor
    with torch.no_grad():
        for name in stacks:
            model.layers[0].get_parameter(name)[1].add_(0.1)
    model.save_pretrained(tmp_path / "tuned")
    original, tuned = (BlockFiles(tmp_path / name, f"/{name}/uri", CPU) for name in ("base", "tuned"))
    changed = PerturbedBlocks(original, tuned, 0)
    with original.block(0) as base, tuned.block(0) as moved, changed.block(0) as found:
        for name in stacks:
            change, wanted = (one.get_parameter(name) - base.get_parameter(name) for one in (found, moved))
            assert torch.allclose(change.flatten(1).norm(dim=1), wanted.flatten(1).norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("share", [3e-4, 1e-3, 1e-2])
def test_a_small_change_in_half_precision_is_as_large_as_the_fine_tunes(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(256, 256, generator=generator).bfloat16()
    tuned = (base.float() + share * torch.randn(256, 256, generator=generator)).bfloat16()
    found = _changed(base, tuned, generator)
    sizes = [float((one.float() - base.float()).norm()) for one in (found, tuned)]
    assert found.dtype == torch.bfloat16
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_a_head_is_changed_also_where_one_of_the_two_is_tied_to_the_embeddings() -> None:
    base, tuned = (LlamaForCausalLM(LlamaConfig(**WIDE, tie_word_embeddings=tied)) for tied in (True, False))
    with torch.no_grad():
        tuned.model.embed_tokens.weight.copy_(base.model.embed_tokens.weight)
        tuned.lm_head.weight.copy_(base.lm_head.weight + 0.1)
    head = perturbed_head(base, tuned, seed=3).lm_head.weight
    change, wanted = ((one - base.lm_head.weight).detach().norm() for one in (head, tuned.lm_head.weight))
    assert float(change) == pytest.approx(float(wanted), rel=1e-4)


def test_embeddings_and_heads_are_changed_by_as_much_and_tied_ones_alike(tmp_path: Path) -> None:
    for tied in (True, False):
        base, tuned = (LlamaForCausalLM(LlamaConfig(**WIDE, tie_word_embeddings=tied)) for _ in range(2))
        tuned.load_state_dict(base.state_dict())
        with torch.no_grad():
            tuned.lm_head.weight[:20] += 0.1
            if not tied:
                tuned.model.embed_tokens.weight[5] += 0.2
        for name, model in (("base", base), ("tuned", tuned)):
            model.model.save_pretrained(tmp_path / name)
        original, other = (BlockFiles(tmp_path / name, f"/{name}/uri", CPU) for name in ("base", "tuned"))
        embedded: Any = PerturbedBlocks(original, other, seed=3).model.get_input_embeddings().weight
        head = perturbed_head(base, tuned, seed=3).lm_head.weight
        for found, one, moved in (
            (embedded, base.model.embed_tokens.weight, tuned.model.embed_tokens.weight),
            (head, base.lm_head.weight, tuned.lm_head.weight),
        ):
            change, wanted = float((found - one).detach().norm()), float((moved - one).detach().norm())
            assert change == pytest.approx(wanted, rel=1e-4)
            assert change > 0
        assert torch.equal(embedded, head) is tied
