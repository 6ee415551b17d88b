"""Grafts, splices and latents of pairs that run block by block, against whole models, which are their judges."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForSequenceClassification

from tests.builders.families import BLOCKS, made
from tests.builders.stages import labelled, pair_context, request, resolved
from tests.stages.test_families import saved
from tests.stages.test_layered import assert_same, layered, lora, never, noised, with_head
from workers.models.adapters import merge_adapter
from workers.models.layer_order import Pass
from workers.models.structure import NotBlockwise
from workers.stages.causal import stage as causal
from workers.stages.causal.stage import Effects, measure_effects
from workers.stages.common.context import PairContext
from workers.stages.common.inputs import Checkpoint, UnmergedAdapter
from workers.stages.common.progress import Spans
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.compare.stage import compare
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.whole_models import extract_whole
from workers.stages.learned.stage import learn
from workers.stages.sae import splicing
from workers.stages.sae.findings import SaeResults
from workers.stages.sae.rows import sae_rows
from workers.stages.sae.stage import train_saes
from workers.stages.sae.token_latents import token_latents

TOLERANCE = 1e-4
"""Relative: sums in float64 of what float32 gives in batches of other shapes."""


def context_of(folder: Path, base: Any, tuned: Any, sae: list[int] | None = None) -> PairContext:
    settings: Any = {"tokens": 20_000, "layers": sae, "width": 4, "k": 8} if sae else None
    given = resolved(saved(base, folder / "base"), texts=90)
    given = dataclasses.replace(given, split=dataclasses.replace(given.split, spare=labelled(200, seed=8)))
    asked = request(seed=3, analysis={"sae": settings})
    return pair_context(given, saved(tuned, folder / "tuned"), folder / "scratch", asked)


def effects(context: PairContext, extracted: Extracted, trained: SaeResults | None = None) -> Effects:
    compared = compare(context, extracted)
    return measure_effects(context, extracted, compared, evaluate_outputs(context, compared.drift, extracted), trained)


def both_ways(context: PairContext) -> tuple[Effects, Effects]:
    """The effects block by block, and of whole models."""
    found = []
    for name, extracted in (("layers", layered(context)), ("whole", extract_whole(context, None))):
        own = dataclasses.replace(context, folder=context.folder / name)
        found.append(effects(own, extracted))
    return found[0], found[1]


@pytest.fixture
def never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs block by block asks no whole model."""

    def refused(*_: Any) -> Any:
        raise AssertionError("a whole model was asked")

    whole = causal._asked_whole
    monkeypatch.setattr(
        causal,
        "_asked_whole",
        lambda asked: refused() if asked.extracted.execution.mode == "layers" else whole(asked),
    )


@pytest.mark.usefixtures("never_whole")
@pytest.mark.parametrize("family", ["llama", "gpt2", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_grafts_block_by_block_are_those_of_whole_language_models(family: str, tmp_path: Path) -> None:
    base, tuned = with_head(made(family, 0)), with_head(noised(family))
    one, other = both_ways(context_of(tmp_path, base, tuned))
    assert other.causal.graft is not None
    assert other.causal.graft.measure == "perplexity"
    assert_same(one.grafts, other.grafts, TOLERANCE)
    assert_same(one.causal, other.causal, TOLERANCE)
    assert one.recommendation.freeze_first == other.recommendation.freeze_first
    assert one.grafts is not None
    assert one.grafts[0].prefix_cost.value == 0.0  # the embeddings are the same
    assert any(abs(graft.prefix_cost.value or 0.0) > 1e-3 for graft in one.grafts)


@pytest.mark.usefixtures("never_whole")
def test_an_adapter_is_grafted_and_searched_without_being_merged(tmp_path: Path) -> None:
    model = with_head(made("llama", 0))
    base, adapter = saved(model, tmp_path / "base"), lora(model, ["q_proj", "down_proj"], tmp_path / "adapter")
    merge_adapter(base, adapter, tmp_path / "merged", "/tuned/uri")
    light = tmp_path / "light"
    light.mkdir()
    shutil.copyfile(base / "config.json", light / "config.json")
    unmerged = Checkpoint(light, "file:///tuned", "1" * 64, UnmergedAdapter(adapter, never))
    given, asked = resolved(base, texts=90), request(seed=3, analysis={"sae": None, "learned": {"tokens": 400}})
    found = []
    for name, tuned, way in (
        ("adapter", unmerged, layered),
        ("merged", Checkpoint(tmp_path / "merged", "file:///tuned", "1" * 64), lambda one: extract_whole(one, None)),
    ):
        context = pair_context(given, tuned, tmp_path / f"scratch-{name}", asked)
        extracted = way(context)
        found.append((effects(context, extracted).grafts, learn(context, extracted).learned))
    (grafts, learned), (expected, judge) = found
    assert_same(grafts, expected, TOLERANCE)
    assert learned is not None
    assert judge is not None
    assert_same(learned.methods, judge.methods, 1e-3)


@pytest.mark.usefixtures("never_whole")
@pytest.mark.parametrize("named", [True, False], ids=["labels are classes", "labels of others"])
@pytest.mark.parametrize("padded", [True, False], ids=["padding token", "none"])
def test_classifiers_on_decoders_are_asked_by_their_heads_alone(named: bool, padded: bool, tmp_path: Path) -> None:
    """Such as reward models, of which 8B is an ordinary size."""
    base, tuned = (as_classifier(body, named, padded) for body in (made("llama", 0), noised("llama")))
    context = context_of(tmp_path, base, tuned)
    one, other = both_ways(context)
    assert other.causal.graft is not None
    assert other.causal.graft.measure == ("accuracy" if named else "kl")
    assert_same(one.grafts, other.grafts, TOLERANCE)
    outputs = []
    for name, extracted in (("layers", layered(context)), ("whole", extract_whole(context, None))):
        own = dataclasses.replace(context, folder=context.folder / f"outputs-{name}")
        outputs.append(evaluate_outputs(own, [0.0, 0.1, 0.1, 0.1], extracted).outputs)
    assert outputs[0] is not None
    assert_same(outputs[0], outputs[1], TOLERANCE)


def as_classifier(body: Any, named: bool, padded: bool) -> Any:
    config = copy.deepcopy(body.config)
    names = ["no", "yes"] if named else ["x", "y"]
    config.update({"num_labels": 2, "pad_token_id": 0 if padded else None})
    config.id2label = dict(enumerate(names))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(body.state_dict())
    return model


@pytest.mark.parametrize("labelled", [True, False])
def test_splices_of_classifiers_block_by_block_are_those_of_whole_ones(
    labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splicing, "LEAST_LOSS", -1e9)
    base, tuned = (as_classifier(body, labelled, True) for body in (made("llama", 0), noised("llama")))
    context = context_of(tmp_path, base, tuned, sae=[1, 2])  # the last token is special, and none edits it
    extracted = layered(context)
    assert extracted.heldout is not None
    rows = sae_rows(context, extracted.tokenization, extracted.heldout, layered=True)
    trained = train_saes(context, rows, None)
    found = []
    for one in (extracted, extract_whole(dataclasses.replace(context, folder=tmp_path / "judge"), None)):
        own = dataclasses.replace(context, folder=tmp_path / one.execution.mode)
        found.append(effects(own, one, trained).spliced)
    assert found[0] is not None
    assert found[0].info.loss == ("cross_entropy" if labelled else "kl")
    assert_same(found[0], found[1], 1e-2)


@pytest.mark.usefixtures("never_whole")
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_grafts_of_bodies_without_a_head_move_the_same_states(family: str, tmp_path: Path) -> None:
    one, other = both_ways(context_of(tmp_path, made(family, 0), noised(family)))
    assert other.causal.graft is not None
    assert other.causal.graft.measure == "state_change"
    assert_same(one.grafts, other.grafts, 1e-3)


@pytest.mark.usefixtures("never_whole")
def test_splices_and_latents_block_by_block_are_those_of_whole_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same autoencoders in both; latents of shown texts too."""
    monkeypatch.setattr(splicing, "LEAST_LOSS", -1e9)  # of random heads a mean is as good as any state
    context = context_of(tmp_path, with_head(made("llama", 0)), with_head(noised("llama")), sae=[1, BLOCKS])
    extracted = layered(context)
    assert extracted.heldout is not None
    rows = sae_rows(context, extracted.tokenization, extracted.heldout, layered=True)
    trained = train_saes(context, rows, None)
    dictionaries = trained.dictionaries
    for place in range(len(dictionaries.layers)):  # 20 sets are drawn of the others
        dictionaries.changed[place], dictionaries.others[place] = list(range(20)), list(range(20, 60))
    found = []
    for one in (extracted, extract_whole(dataclasses.replace(context, folder=tmp_path / "judge"), None)):
        own = dataclasses.replace(context, folder=tmp_path / one.execution.mode)
        found.append((effects(own, one, trained), token_latents(own, one, dictionaries)))
    (in_layers, latents), (whole, expected) = found
    assert whole.spliced is not None
    assert in_layers.spliced is not None
    assert_same(in_layers.spliced.tuned, whole.spliced.tuned, 1e-3)
    assert_same(in_layers.spliced.base, whole.spliced.base, 1e-3)
    assert_same(in_layers.spliced.info, whole.spliced.info)
    assert [one.value for one in whole.spliced.tuned] != [None, None]
    ablations = [one for one in whole.spliced.ablations if one is not None]
    assert ablations
    assert all(one.draws > 0 for one in ablations)
    assert_same(in_layers.spliced.ablations, whole.spliced.ablations, 1e-3)
    assert in_layers.promoted == whole.promoted
    assert_same(latents, expected, 2e-3)


def test_blocks_that_hand_on_more_than_their_states_are_asked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass whose own states do not come out again beside itself is none that grafts can go through."""
    context = context_of(tmp_path, with_head(made("llama", 0)), with_head(noised("llama")))
    plain = Pass._patched

    def shifted(self: Pass, forward: Any, state: Tensor, args: Any, kwargs: Any) -> Tensor:
        return plain(self, forward, state, args, kwargs) + 0.1

    extracted = layered(context)
    expected = effects(context, dataclasses.replace(extracted))
    monkeypatch.setattr(Pass, "_patched", shifted)
    with pytest.raises(NotBlockwise, match="depend on the texts that run beside it"):
        causal._asked_in_layers(asked_of(context, extracted))
    found = effects(dataclasses.replace(context, folder=tmp_path / "again"), extracted)
    assert_same(found.grafts, expected.grafts, TOLERANCE)


def asked_of(context: PairContext, extracted: Extracted) -> Any:
    rows = context.resolved.split.analysed[: extracted.analysed]
    spans = Spans(context.on_progress, {causal.SPLICES: 1.0, causal.GRAFTS: 1.0})
    return causal._Asked(context, extracted, rows, None, spans)
