"""Grafts, splices and latents of pairs that run block by block, against whole models, which are their judges."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.builders.families import BLOCKS, made
from tests.builders.stages import labelled, pair_context, request, resolved
from tests.stages.test_families import saved
from tests.stages.test_layered import assert_same, layered, noised, with_head
from workers.models.layer_order import Pass
from workers.models.structure import NotBlockwise
from workers.stages.causal import stage as causal
from workers.stages.causal.stage import Effects, measure_effects
from workers.stages.common.context import PairContext
from workers.stages.common.progress import Spans
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.compare.stage import compare
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.whole_models import extract_whole
from workers.stages.sae import splicing
from workers.stages.sae.findings import SaeResults
from workers.stages.sae.rows import sae_rows
from workers.stages.sae.stage import train_saes
from workers.stages.sae.token_latents import token_latents

TOLERANCE = 1e-4
"""Relative: sums in float64 of what float32 gives in batches of other shapes."""


def context_of(folder: Path, base: Any, tuned: Any, sae: bool = False) -> PairContext:
    settings: Any = {"tokens": 20_000, "layers": [1, BLOCKS], "width": 4, "k": 8} if sae else None
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
    context = context_of(tmp_path, with_head(made("llama", 0)), with_head(noised("llama")), sae=True)
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
