"""The two models of an analysis: what is remembered of them, which fit together, how far their weights moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from layerdrift.contract.errors import InputError
from tests.builders.heads import BERT_SIZES, causal_lm, seeded
from tests.builders.models import BLOCKS, HIDDEN, add_noise, save_model, tiny_bert, tiny_tokenizer
from tests.builders.texts import make_texts
from workers.models.inliers import Inliers
from workers.models.states import StateReader
from workers.models.texts import Batch, batches
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.model_pair import Pair, StateMemory, load_pair, model_info, weight_drift
from workers.stages.common.moment_accumulator import TokenizationSpec


def batch(*indices: int) -> Batch:
    ids = torch.ones(len(indices), 2, dtype=torch.int64)
    return Batch(ids, ids, ids.bool(), list(indices))


def test_states_are_remembered_by_their_texts_in_order() -> None:
    memory, states = StateMemory(), [torch.ones(2, 3)]
    memory.put(batch(0, 1), states)
    assert memory.get(batch(0, 1)) == (states,)
    assert memory.get(batch(1, 0)) is None
    assert memory.get(batch(0)) is None


def test_memory_takes_what_fits_and_passes_over_what_does_not() -> None:
    memory = StateMemory(limit_bytes=40)
    memory.put(batch(0), [torch.zeros(4)], [torch.zeros(4)])  # 32 bytes
    memory.put(batch(1), [torch.zeros(3)])  # 12 more
    memory.put(batch(2), [torch.zeros(2)])  # 8 more
    assert [memory.get(batch(number)) is not None for number in range(3)] == [True, False, True]


def pair_of(base: PreTrainedModel, tuned: PreTrainedModel, folder: Path) -> Pair:
    return Pair(base, tuned, TokenizationSpec(tiny_tokenizer(folder), 32, False, StateReader(BLOCKS + 1, HIDDEN)))


def test_a_batch_that_is_asked_for_again_is_not_run_again(tmp_path: Path) -> None:
    pair, runs = pair_of(tiny_bert(0), tiny_bert(1), tmp_path), []
    for model in (pair.base, pair.tuned):
        model.register_forward_pre_hook(lambda module, _: runs.append(module is pair.base))
    one, other = batches(pair.tokenization.tokenizer, make_texts(4), 2, 32)
    first = pair.remembered_states(one)
    assert len(runs) == 2
    again = pair.remembered_states(one)
    assert pair.base_states(one) is again[0]
    assert len(runs) == 2
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    pair.base_states(other)
    assert runs[2:] == [True]  # of the base model alone


def test_a_pair_with_a_rule_for_outliers_is_another_pair_of_the_same_models_and_memory(tmp_path: Path) -> None:
    pair = pair_of(tiny_bert(0), tiny_bert(1), tmp_path)
    rule = Inliers.everywhere(False, BLOCKS + 1)
    found = pair.with_inliers(rule)
    assert found.tokenization.rule is rule
    assert found.memory is pair.memory
    assert pair.tokenization.inliers is None
    assert found.shape == (BLOCKS + 1, HIDDEN)


def test_quick_states_are_float32_and_near_the_exact_ones(tmp_path: Path) -> None:
    pair = pair_of(tiny_bert(0), tiny_bert(1), tmp_path)
    (one,) = batches(pair.tokenization.tokenizer, make_texts(3), 3, 32)
    for quick, exact in zip(pair.fast_states(one), pair.states(one), strict=True):
        for state, expected in zip(quick, exact, strict=True):
            assert state.dtype is torch.float32
            assert float((state - expected).norm() / expected.norm()) < 0.03


def checkpoint(model: PreTrainedModel, folder: Path) -> Checkpoint:
    return Checkpoint(save_model(model, folder), folder.as_uri(), "0" * 64)


def test_a_pair_reads_texts_as_far_as_both_models_have_positions(tmp_path: Path) -> None:
    shorter = seeded(BertModel, BertConfig(**BERT_SIZES | {"max_position_embeddings": 40}))
    one, other = checkpoint(tiny_bert(0), tmp_path / "base"), checkpoint(shorter, tmp_path / "tuned")
    tokenizer = tiny_tokenizer(tmp_path)
    pair = load_pair(one, other, tokenizer, 999, units=(0, 0, 1))
    assert (pair.tokenization.length, pair.tokenization.causal, pair.tokenization.units) == (40, False, (0, 0, 1))
    assert pair.shape == (BLOCKS + 1, HIDDEN)
    assert load_pair(one, other, tokenizer, 10).tokenization.length == 10


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        (lambda: tiny_bert(1, blocks=2), "a BertModel cannot be compared with a BertModel"),
        (lambda: tiny_bert(1, hidden=16), "states of different shapes"),
        (lambda: causal_lm(1), "a GPT2Model cannot be compared with a BertModel"),
    ],
    ids=["fewer blocks", "narrower", "another architecture"],
)
def test_models_that_do_not_fit_together_are_refused(tmp_path: Path, tuned: object, message: str) -> None:
    assert callable(tuned)
    one, other = checkpoint(tiny_bert(0), tmp_path / "base"), checkpoint(tuned(), tmp_path / "tuned")
    with pytest.raises(InputError, match=message) as raised:
        load_pair(one, other, tiny_tokenizer(tmp_path), 32)
    assert raised.value.errors[0].pointer == "/tuned/uri"


def test_a_model_is_described_by_what_it_is(tmp_path: Path) -> None:
    model = tiny_bert(blocks=2)
    found = model_info(model, Checkpoint(tmp_path, "hf://a/b", "f" * 64))
    assert (found.uri, found.fingerprint) == ("hf://a/b", "f" * 64)
    assert (found.architecture, found.blocks, found.hidden_size) == ("BertModel", 2, HIDDEN)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_weights_that_did_not_move_have_no_drift_and_a_moved_block_is_found(tmp_path: Path) -> None:
    tuned = tiny_bert(0)
    add_noise(tuned, block=2)
    layers = weight_drift(pair_of(tiny_bert(0), tuned, tmp_path))
    moved = [{part for part, drift in parts.items() if drift.relative_frobenius} for parts in layers]
    assert moved == [set(), set(), {"attention", "mlp"}, set()]  # norms have one value, which noise in its scale leaves


def test_a_matrix_that_was_doubled_moved_by_its_own_norm(tmp_path: Path) -> None:
    tuned = tiny_bert(0)
    with torch.no_grad():
        for parameter in tuned.encoder.layer[0].parameters():
            parameter.mul_(2)
    drift = weight_drift(pair_of(tiny_bert(0), tuned, tmp_path))[1]
    assert [part.relative_frobenius for part in drift.values()] == pytest.approx([1.0] * len(drift))


def test_rows_that_one_embedding_table_has_more_are_left_out(tmp_path: Path) -> None:
    tuned = tiny_bert(0)
    with torch.random.fork_rng():
        tuned.resize_token_embeddings(tuned.config.vocab_size + 5, mean_resizing=False)
    for pair in (pair_of(tiny_bert(0), tuned, tmp_path), pair_of(tuned, tiny_bert(0), tmp_path)):
        assert weight_drift(pair)[0]["embeddings"].relative_frobenius == 0.0


def test_a_broken_model_is_refused_at_its_own_place(tmp_path: Path) -> None:
    one, other = checkpoint(tiny_bert(0), tmp_path / "base"), checkpoint(tiny_bert(1), tmp_path / "tuned")
    config = json.loads((other.folder / "config.json").read_text())
    (other.folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(InputError) as raised:
        load_pair(one, other, tiny_tokenizer(tmp_path), 32)
    assert raised.value.errors[0].pointer == "/tuned/uri"
