"""What grafts cost and what that says about freezing. Grafts in models: tests/unit/workers/models/test_grafts.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from transformers import AlbertConfig, AlbertModel, PreTrainedModel

from backends.tables.reading import Row
from tests.builders.heads import BERT_SIZES, causal_lm, classifier, seeded
from tests.builders.models import BLOCKS, HIDDEN, save_model, tiny_bert, tiny_tokenizer
from tests.builders.stages import on_progress, pair_context, request, resolved
from tests.builders.texts import make_texts
from workers.models.grafts import BaseWeights
from workers.models.loading import body_of
from workers.models.states import StateReader
from workers.results.effects import GraftInfo, LayerGraft
from workers.results.measured import Measured
from workers.stages.causal import grafting
from workers.stages.causal.grafting import base_weights, graft_scores, predicted_by_grafts
from workers.stages.causal.sweep import NOT_RETRAINED
from workers.stages.common import known_states
from workers.stages.common.evaluation import EvalSet
from workers.stages.common.moment_accumulator import TokenizationSpec

MeasureName = Literal["accuracy", "perplexity", "kl", "state_change"]


def info(measure: MeasureName = "accuracy") -> GraftInfo:
    return GraftInfo(measure=measure, ungrafted=0.9, examples=200)


def graft(value: float | None, low: float | None = None, high: float | None = None) -> LayerGraft:
    cost = Measured(value=value, low=low, high=high)
    return LayerGraft(prefix=Measured(value=0.8), prefix_cost=cost, block=Measured(value=0.8))


FREE, HARMLESS = graft(0.0, 0.0, 0.0), graft(0.001, -0.002, 0.004)
UNCLEAR, COSTLY = graft(0.01, -0.01, 0.03), graft(0.3, 0.2, 0.4)


@pytest.mark.parametrize(
    ("grafts", "freeze_first", "basis", "words"),
    [
        ([FREE, HARMLESS, COSTLY], 1, "predicted", "matters to the outputs"),
        ([FREE, HARMLESS, UNCLEAR, COSTLY], 1, "predicted", "whether this exceeds 0.005 is unclear"),
        ([FREE, COSTLY, FREE], 0, "predicted", "first 1 of 2 blocks swapped in"),
        ([COSTLY, COSTLY], 0, "predicted", "With the base model's embeddings swapped in"),
        ([FREE, HARMLESS, HARMLESS], 0, "none", "do not show what was learned"),
        ([FREE, UNCLEAR], 0, "none", "do not show what was learned"),
        ([FREE, graft(0.001), COSTLY], 0, "predicted", "is unclear"),
        ([FREE, graft(None), COSTLY], 0, "predicted", "matters to the outputs"),
        ([FREE, graft(0.005, 0.004, 0.005), COSTLY], 1, "predicted", "this is harmless"),
    ],
    ids=[
        "shown to cost",
        "unclear ends it",
        "a harmless layer above a costly one does not count",
        "the embeddings cost",
        "nothing costs",
        "nothing is shown to cost",
        "a cost without an interval shows nothing",
        "a cost that is undefined is no harmless one",
        "just what is tolerated",
    ],
)
def test_advice_goes_up_to_the_first_graft_that_is_not_shown_to_be_harmless(
    grafts: list[LayerGraft], freeze_first: int, basis: str, words: str
) -> None:
    found = predicted_by_grafts(info(), grafts)
    assert found is not None
    assert (found.freeze_first, found.basis) == (freeze_first, basis)
    assert words in found.evidence
    assert (NOT_RETRAINED in found.evidence) is (basis == "predicted")


def test_where_answers_are_not_judged_there_is_no_advice() -> None:
    assert predicted_by_grafts(info("state_change"), [FREE, COSTLY]) is None


@pytest.mark.parametrize(("measure", "freeze_first"), [("accuracy", 0), ("perplexity", 1), ("kl", 1)])
def test_what_is_tolerated_depends_on_the_measure(measure: MeasureName, freeze_first: int) -> None:
    found = predicted_by_grafts(info(measure), [FREE, graft(0.007, 0.004, 0.009), COSTLY])
    assert found is not None
    assert found.freeze_first == freeze_first


@pytest.fixture
def tokenization(tmp_path: Path) -> TokenizationSpec:
    return TokenizationSpec(tiny_tokenizer(tmp_path), 32, False, StateReader(BLOCKS + 1, HIDDEN))


ROWS = [Row(text, str(number % 2)) for number, text in enumerate(make_texts(24))]


def test_grafts_of_the_same_model_cost_exactly_nothing(tokenization: TokenizationSpec, tmp_path: Path) -> None:
    model = classifier(labels=2, id2label={0: "0", 1: "1"}, label2id={"0": 0, "1": 1})
    weights = BaseWeights(body_of(model), tmp_path / "grafts")
    found, told = graft_scores(weights, model, EvalSet(tokenization, ROWS, "classifier"), True, on_progress).costs()
    assert (told.measure, told.examples) == ("accuracy", 24)
    assert [graft.prefix_cost for graft in found] == [Measured(value=0.0, low=0.0, high=0.0)] * (BLOCKS + 1)
    assert {graft.block.value for graft in found} == {told.ungrafted}


def test_the_whole_base_model_under_the_tuned_head_costs_what_its_answers_lack(
    tokenization: TokenizationSpec, tmp_path: Path
) -> None:
    """Labels are the tuned model's own answers, so that it is right everywhere."""
    tuned, base = classifier(labels=2, seed=1), tiny_bert(2)
    labels = [str(tuned.config.id2label[0])] * 24  # type: ignore[index]
    rows = [row._replace(label=label) for row, label in zip(ROWS, labels, strict=True)]
    weights = BaseWeights(base, tmp_path / "grafts")
    found, told = graft_scores(weights, tuned, EvalSet(tokenization, rows, "classifier"), True, on_progress).costs()
    last = found[-1]
    assert last.prefix.value is not None
    assert last.prefix_cost.value == pytest.approx(told.ungrafted - last.prefix.value)
    assert found[0].block == found[0].prefix


def test_a_language_models_cost_is_its_relative_rise_of_perplexity(tmp_path: Path) -> None:
    tokenization = TokenizationSpec(tiny_tokenizer(tmp_path), 32, True, StateReader(BLOCKS + 1, HIDDEN))
    tuned = causal_lm(1)
    weights = BaseWeights(body_of(causal_lm(0)), tmp_path / "grafts")
    found, told = graft_scores(weights, tuned, EvalSet(tokenization, ROWS, "causal_lm"), True, on_progress).costs()
    assert told.measure == "perplexity"
    for graft in found:
        assert graft.prefix.value is not None
        assert graft.prefix_cost.value == pytest.approx(graft.prefix.value / told.ungrafted - 1, rel=1e-4)


@pytest.mark.parametrize("kind", ["classifier", "causal_lm"])
def test_grafts_on_known_states_cost_what_whole_models_say(
    kind: Literal["classifier", "causal_lm"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Callable[..., PreTrainedModel] = classifier if kind == "classifier" else causal_lm
    causal = kind == "causal_lm"
    tokenization = TokenizationSpec(tiny_tokenizer(tmp_path), 32, causal, StateReader(BLOCKS + 1, HIDDEN))
    weights = BaseWeights(body_of(make(seed=0)), tmp_path / "grafts")
    found = []
    for room in (1 << 30, 0):
        monkeypatch.setattr(known_states, "KEPT_BYTES", room)
        found.append(graft_scores(weights, make(seed=1), EvalSet(tokenization, ROWS, kind), True, on_progress).costs())
    (one, told), (judge, expected) = found
    assert told == expected
    for graft, other in zip(one, judge, strict=True):
        for name in ("prefix", "block", "prefix_cost"):
            assert getattr(graft, name).value == pytest.approx(getattr(other, name).value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("tokens", [40, 10_000])
def test_a_language_model_is_asked_no_more_than_a_number_of_tokens(
    tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grafting, "GRAFT_TOKENS", tokens)
    tokenization = TokenizationSpec(tiny_tokenizer(tmp_path), 32, True, StateReader(BLOCKS + 1, HIDDEN))
    weights = BaseWeights(body_of(causal_lm(0)), tmp_path / "grafts")
    _, told = graft_scores(weights, causal_lm(1), EvalSet(tokenization, ROWS, "causal_lm"), True, on_progress).costs()
    assert (told.examples < len(ROWS)) is (tokens == 40)


@pytest.mark.parametrize("grafts", [True, False])
def test_base_weights_are_kept_only_where_grafts_are_asked_for(tmp_path: Path, grafts: bool) -> None:
    base = save_model(tiny_bert(0), tmp_path / "base")
    asked = request(analysis={"sae": None, "grafts": grafts})
    weights, warnings = base_weights(pair_context(resolved(base, texts=1), base, tmp_path / "job", asked))
    assert (weights is not None) is grafts
    assert warnings == []


def test_a_model_whose_blocks_share_their_weights_has_no_grafts_and_says_so(tmp_path: Path) -> None:
    config = AlbertConfig(**BERT_SIZES, embedding_size=16)
    base = save_model(seeded(AlbertModel, config), tmp_path / "base")
    weights, (warning,) = base_weights(pair_context(resolved(base, texts=1), base, tmp_path / "job"))
    assert weights is None
    assert warning.code == "shared_blocks"
