"""What two language models say next, held against the whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from layerdrift.contract.inspection import LIKELIEST
from tests.builders.families import made
from tests.builders.heads import classifier
from tests.builders.stages import resolved
from tests.stages.test_families import saved
from tests.stages.test_layered import with_head
from workers.inspector import LoadedPair, completed, inspected
from workers.models.texts import encode, special_ids
from workers.next_tokens import Heads
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.layered_pair import layered_pair
from workers.stages.common.model_pair import load_pair

TEXTS = ["the film was good and", "bad", "the plot"]
FLOATS = torch.float32, torch.float32


@pytest.fixture(scope="module")
def whole() -> tuple[Any, Any]:
    return with_head(made("llama", 0)).eval(), with_head(made("llama", 1)).eval()


@pytest.fixture(scope="module")
def sides(whole: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint, Any]:
    folder = tmp_path_factory.mktemp("pair")
    base, tuned = saved(whole[0], folder / "base"), saved(whole[1], folder / "tuned")
    return Checkpoint(base, "", ""), Checkpoint(tuned, "", ""), resolved(base).tokenizer


def pair_of(sides: tuple[Checkpoint, Checkpoint, Any], way: str) -> LoadedPair:
    base, tuned, tokenizer = sides
    pair = (load_pair if way == "whole" else layered_pair)(base, tuned, tokenizer, 64)
    layers, width = pair.tokenization.states.layers, pair.tokenization.states.width
    centres = torch.zeros(2, layers, width)
    heads = Heads.load(base, tuned, FLOATS)
    return LoadedPair(pair, (centres[0], centres[1]), None, {}, {}, heads)


@pytest.mark.parametrize("way", ["whole", "layers"])
def test_distributions_after_each_token_are_those_of_the_whole_models(
    way: str, sides: tuple[Checkpoint, Checkpoint, Any], whole: tuple[Any, Any]
) -> None:
    for text in inspected(pair_of(sides, way), TEXTS):
        ids = encode(sides[2], [text.text], 64)[0].ids
        with torch.inference_mode():
            base, tuned = (model(torch.tensor([ids])).logits[0].double().log_softmax(-1) for model in whole)
        assert text.next_tokens is not None
        assert len(text.next_tokens) == len(ids) == len(text.tokens)
        for place, found in enumerate(text.next_tokens):
            wanted = float((tuned[place].exp() * (tuned[place] - base[place])).sum()) / torch.log(torch.tensor(2.0))
            assert found.divergence == pytest.approx(float(wanted), rel=1e-3, abs=1e-5)
            for told, log_probs in ((found.base, base[place]), (found.tuned, tuned[place])):
                top = log_probs.exp().topk(LIKELIEST)
                assert [one.probability for one in told] == pytest.approx(top.values.tolist(), rel=1e-3)
                assert [one.token for one in told] == [sides[2].decode([token]) for token in top.indices.tolist()]


def test_both_models_go_on_with_the_likeliest_token_as_far_as_each_request_asks(
    sides: tuple[Checkpoint, Checkpoint, Any], whole: tuple[Any, Any]
) -> None:
    loaded = pair_of(sides, "whole")
    counts = [5, 0, 3]
    found = completed(loaded, inspected(loaded, TEXTS), counts)
    assert found[1].completions is None
    for text, count in zip(found, counts, strict=True):
        if text.completions is None:
            continue
        given = [token for token in encode(sides[2], [text.text], 64)[0].ids if token != sides[2].sep_token_id]
        for model, told in zip(whole, (text.completions.base, text.completions.tuned), strict=True):
            ids = list(given)
            with torch.inference_mode():
                for _ in range(count):
                    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            ended = ids[len(given) :]
            ends = {model.config.eos_token_id, *special_ids(sides[2])}
            stop = next((place for place, token in enumerate(ended) if token in ends), count)
            assert told == sides[2].decode(ended[:stop])
    again = inspected(loaded, TEXTS)  # the heads are alone again
    assert [one.next_tokens for one in again] == [one.next_tokens for one in found]


def test_a_pair_in_layers_writes_nothing(sides: tuple[Checkpoint, Checkpoint, Any]) -> None:
    loaded = pair_of(sides, "layers")
    assert all(one.completions is None for one in completed(loaded, inspected(loaded, TEXTS), [4] * 3))


def test_models_that_are_no_language_models_have_no_heads(tmp_path: Path) -> None:
    one = Checkpoint(saved(classifier(2), tmp_path / "classifier"), "", "")
    assert Heads.load(one, one, FLOATS) is None
    bare = Checkpoint(saved(made("llama", 0), tmp_path / "bare"), "", "")
    assert Heads.load(bare, bare, FLOATS) is None


def test_heads_count_as_memory(sides: tuple[Checkpoint, Checkpoint, Any]) -> None:
    with_heads = pair_of(sides, "whole")
    assert with_heads.heads is not None
    assert with_heads.heads.bytes > 0
    bare = LoadedPair(with_heads.pair, with_heads.centres, None, {}, {})
    assert with_heads.bytes == bare.bytes + with_heads.heads.bytes
