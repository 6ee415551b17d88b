"""What models answer, on tiny real ones, against computations text by text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
)

from backends.tables.reading import Row
from tests.builders.heads import BERT_SIZES, VOCABULARY, causal_lm, classifier, seeded
from tests.builders.models import BLOCKS, HIDDEN, tiny_tokenizer
from tests.builders.texts import make_texts
from workers.analysis.proportions import change_interval
from workers.models.grafts import BaseWeights
from workers.models.loading import HeadKind, body_of, head_kind, load_headed
from workers.models.states import StateReader
from workers.models.structure import blocks_of
from workers.results.effects import GraftInfo, LayerGraft
from workers.results.measured import Measured
from workers.stages.causal.grafting import graft_scores, predicted_by_grafts
from workers.stages.causal.sweep import NOT_RETRAINED
from workers.stages.common.evaluation import (
    EvalSet,
    Evaluator,
    Predicted,
    class_targets,
    divergence_bits,
    kl_bits,
    quality,
)
from workers.stages.common.moment_accumulator import TokenizationSpec

CPU = torch.device("cpu")


def eval_set(folder: Path, kind: HeadKind, texts: int = 30, causal: bool = False) -> EvalSet:
    labels = ["0", "1", "2"]
    rows = [Row(text, labels[index % 3]) for index, text in enumerate(make_texts(texts))]
    return EvalSet(TokenizationSpec(tiny_tokenizer(folder), 64, causal, StateReader(BLOCKS + 1, HIDDEN)), rows, kind)


def all_answers(asked: EvalSet, model: PreTrainedModel) -> Predicted:
    parts = [asked.predict(model, batch) for batch in asked.batches()]
    return Predicted(*(torch.cat(columns) for columns in zip(*(part[:3] for part in parts), strict=True)))


def test_a_language_model_is_asked_for_every_real_token_but_the_first(tmp_path: Path) -> None:
    asked, model = eval_set(tmp_path, "causal_lm", causal=True), causal_lm()
    found = quality(all_answers(asked, model), "causal_lm", len(asked.rows))
    for index, row in enumerate(asked.rows[:5]):
        ids = asked.tokenization.tokenizer(row.text, return_tensors="pt")["input_ids"]
        assert isinstance(ids, Tensor)
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
        places = range(1, ids.shape[1] - 1)  # all words are after [CLS] and before [SEP]
        nats = -sum(float(log_probs[place - 1, ids[0, place]]) for place in places)
        assert float(found.counts[index]) == len(places)
        assert float(found.sums[index]) == pytest.approx(nats, rel=1e-4)


def test_a_masked_model_sees_no_token_that_it_is_asked_for(tmp_path: Path) -> None:
    """With the mask token's row set to something absurd, the answers change: the mask stood there, not the token."""
    asked = eval_set(tmp_path, "masked_lm")
    model = seeded(BertForMaskedLM, BertConfig(**BERT_SIZES))
    before = all_answers(asked, model)
    assert set(before.texts.tolist()) == set(range(30))
    words = sum(len(row.text.split()) for row in asked.rows)
    assert words / 12 < len(before.targets) < words / 5
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        noise = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
        weight[asked.tokenization.tokenizer.mask_token_id] = 5 * noise  # type: ignore[operator]
    after = all_answers(asked, model)
    assert bool(((before.log_probs - after.log_probs).abs().amax(1) > 1e-3).all())


def test_divergences_agree_with_scipy_and_stay_in_their_range() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 40, 7, generator=generator).double().mul(4).log_softmax(-1).unbind(0)
    expected = [jensenshannon(a.exp(), b.exp(), base=2) ** 2 for a, b in zip(one, other, strict=True)]
    assert divergence_bits(one, other).tolist() == pytest.approx(expected, abs=1e-9)
    assert float(divergence_bits(one, one).max()) < 1e-15
    assert torch.equal(kl_bits(one, one), torch.zeros(40, dtype=torch.float64))
    apart = torch.tensor([[0.0, -math.inf]]).clamp_min(-1e4)
    assert float(divergence_bits(apart, apart.flip(1))) == pytest.approx(1.0)


def test_labels_are_known_by_name_or_where_there_are_no_names_by_number() -> None:
    rows = [Row("a", label) for label in ("Negative", "positive", "0", None, "other")]
    assert class_targets(rows, ["negative", "positive"]).classes.tolist() == [0, 1, -1, -2, -1]
    cased = class_targets([Row("a", label) for label in ("Pos", "pos", "POS")], ["pos", "Pos"])
    assert cased.classes.tolist() == [1, 0, -1]
    same = class_targets([Row("a", label) for label in ("other", "other")], ["other", "other"])
    assert not same.known
    numbered = class_targets([Row("a", label) for label in ("1", "LABEL_0", "1.0", None)], ["LABEL_0", "LABEL_1"])
    assert (numbered.classes.tolist(), numbered.numbered) == ([1, 0, 1, -2], False)


def test_numbers_of_classes_with_names_are_read_where_all_are_within_range() -> None:
    inside = class_targets([Row("a", label) for label in ("1", "0", None, "2.0")], ["low", "mid", "high"])
    assert (inside.classes.tolist(), inside.numbered) == ([1, 0, -2, 2], True)
    for label in ("3", "x", "1.5"):
        beyond = class_targets([Row("a", one) for one in ("1", label)], ["low", "mid", "high"])
        assert not beyond.known


def test_labels_from_one_on_are_not_taken_for_the_classes_after_theirs() -> None:
    stars = class_targets([Row("a", str(star)) for star in (1, 2, 3)], ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert not stars.known


def test_texts_without_a_label_are_neither_right_nor_wrong() -> None:
    targets = class_targets([Row("a", label) for label in ("yes", None, "-1", "other")], ["no", "yes"]).classes
    assert targets.tolist() == [1, -2, -2, -1]
    answers = torch.tensor([[0.0, 1.0]]).repeat(4, 1).log_softmax(-1)
    scores = quality(Predicted(answers, targets, torch.arange(4)), "classifier", 4)
    assert (scores.sums.tolist(), scores.counts.tolist()) == ([1, 0, 0, 0], [1, 0, 0, 1])


def shift(model: PreTrainedModel, by: float) -> None:
    """Moves one feature of every token's embedding."""
    with torch.no_grad():
        next(model.get_input_embeddings().parameters())[:, 0] += by


def test_each_kind_of_judgement_is_right_on_a_model_against_itself(tmp_path: Path) -> None:
    asked = eval_set(tmp_path, "classifier")
    model = classifier()
    with torch.no_grad():
        answers = torch.zeros(30, dtype=torch.int64)
        for batch in asked.batches():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            answers[batch.indices] = logits.argmax(1)
    right = Evaluator(asked, headed=True, targets=answers)
    assert (right.measure, float(right.scores(model).sums.sum())) == ("accuracy", 30.0)
    for judge, measure in ((Evaluator(asked, True, None), "kl"), (Evaluator(asked, False, None), "state_change")):
        judged = model if measure == "kl" else model.base_model
        assert judge.measure == measure
        assert float(judge.scores(judged).sums.sum()) == 0.0  # type: ignore[arg-type]
        shift(model, 0.3)
        assert float(judge.scores(judged).sums.sum()) > 0.0  # type: ignore[arg-type]
        shift(model, -0.3)


@pytest.mark.parametrize("make", [lambda seed: classifier(seed=seed), causal_lm])
def test_grafting_every_layer_gives_the_base_and_leaving_gives_the_tuned_model_back(make: Any, tmp_path: Path) -> None:
    base, tuned = make(0), make(1)
    weights = BaseWeights(base.base_model, tmp_path)
    before = {name: parameter.clone() for name, parameter in tuned.named_parameters()}
    ids = torch.randint(5, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    states = [model.base_model(input_ids=ids, output_hidden_states=True).hidden_states for model in (base, tuned)]
    for layer in range(BLOCKS + 1):
        with weights.grafted(tuned.base_model, weights.prefix[layer]):
            found = tuned.base_model(input_ids=ids, output_hidden_states=True).hidden_states
        for index in range(BLOCKS + 1):
            assert torch.equal(found[index], states[0][index]) is (index <= layer)
    with weights.grafted(tuned.base_model, weights.block[2]):
        found = tuned.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    assert [torch.equal(one, other) for one, other in zip(found, states[1], strict=True)] == [True, True, False, False]
    with pytest.raises(RuntimeError, match="in the middle"), weights.grafted(tuned.base_model, weights.prefix[-1]):
        raise RuntimeError("in the middle")
    assert all(torch.equal(before[name], parameter) for name, parameter in tuned.named_parameters())


def test_a_head_is_loaded_only_where_the_files_hold_a_whole_one(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path / "whole")
    found = load_headed(tmp_path / "whole", "/tuned/uri", CPU)
    assert found is not None
    assert found.kind == "classifier"
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), classifier().parameters(), strict=True))
    causal_lm().save_pretrained(tmp_path / "lm")
    language = load_headed(tmp_path / "lm", "/tuned/uri", CPU)
    assert language is not None
    assert language.kind == "causal_lm"
    body = classifier().base_model
    body.save_pretrained(tmp_path / "body")  # type: ignore[operator]
    assert load_headed(tmp_path / "body", "/tuned/uri", CPU) is None
    (tmp_path / "body" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    assert head_kind(tmp_path / "body", "/tuned/uri") == "classifier"
    assert load_headed(tmp_path / "body", "/tuned/uri", CPU) is None


@pytest.mark.parametrize("more", [{"labels": 1}, {"problem_type": "multi_label_classification"}])
def test_heads_without_one_right_class_are_not_judged(tmp_path: Path, more: dict[str, Any]) -> None:
    classifier(**more).save_pretrained(tmp_path / "model")
    assert head_kind(tmp_path / "model", "/tuned/uri") is None


def graft(cost: float, low: float | None = None, high: float | None = None) -> LayerGraft:
    number = Measured(value=0.8 - cost)
    return LayerGraft(prefix=number, block=number, prefix_cost=Measured(value=cost, low=low, high=high))


NOTHING, HARM = graft(0.0, 0.0, 0.0), graft(0.06, 0.04, 0.08)


@pytest.mark.parametrize(
    ("costs", "freeze_first", "words"),
    [
        (
            [NOTHING, graft(0.0, -0.004, 0.004), graft(0.001, -0.003, 0.005), HARM],
            2,
            "first 2 of 3 blocks swapped in",
        ),
        ([NOTHING, graft(0.0, -0.004, 0.006), HARM], 0, "whether this exceeds 0.005 is unclear"),
        ([NOTHING, graft(0.03, 0.01, 0.05), graft(0.0, -0.01, 0.005)], 0, "first 1 of 2 blocks swapped in"),
        ([graft(0.03, 0.01, 0.05), NOTHING], 0, "With the base model's embeddings swapped in, the tuned"),
        ([graft(0.0), graft(0.004), HARM], 0, "whether this exceeds 0.005 is unclear"),
    ],
)
def test_advice_goes_up_to_the_first_graft_that_is_not_shown_to_do_no_harm(
    costs: list[LayerGraft], freeze_first: int, words: str
) -> None:
    """Without an interval nothing is shown but a cost of 0 of parts that are the same."""
    advice = predicted_by_grafts(GraftInfo(measure="accuracy", ungrafted=0.8, examples=500), costs)
    assert advice is not None
    assert (advice.freeze_first, advice.basis) == (freeze_first, "predicted")
    assert words in advice.evidence
    assert advice.evidence.endswith(NOT_RETRAINED)


@pytest.mark.parametrize("texts", [50, 200, 500])
def test_a_cost_of_five_points_is_hardly_ever_called_harmless(texts: int) -> None:
    """When the lower end decided, it was in 89, 63 and 26 % of samples of so many texts."""
    generator = torch.Generator().manual_seed(texts)
    harmless = 0
    for _ in range(200):
        draws = torch.rand(texts, generator=generator)
        losses, gains = int((draws < 0.075).sum()), int((draws > 0.975).sum())
        low, high = change_interval(losses, gains, texts)
        costs = [NOTHING, graft((losses - gains) / texts, low, high), HARM]
        advice = predicted_by_grafts(GraftInfo(measure="accuracy", ungrafted=0.8, examples=texts), costs)
        harmless += advice is not None and advice.freeze_first > 0
    assert harmless <= 5


def grafted(tuned: PreTrainedModel, base: PreTrainedModel, folder: Path) -> tuple[BaseWeights, list[LayerGraft]]:
    weights = BaseWeights(body_of(base), folder / "grafts")
    rows = [Row(text, None) for text in make_texts(40)]
    tokenization = TokenizationSpec(tiny_tokenizer(folder), 32, True, StateReader.of(body_of(tuned), ""))
    found, _ = graft_scores(weights, tuned, EvalSet(tokenization, rows, "causal_lm"), True, lambda *_: None).costs()
    return weights, found


def test_a_graft_of_the_embeddings_leaves_a_tied_head(tmp_path: Path) -> None:
    tuned, base = causal_lm(0), causal_lm(1)
    embeddings: Any = tuned.get_input_embeddings()
    assert tuned.get_output_embeddings().weight is embeddings.weight
    own = embeddings.weight.detach().clone()
    weights, _ = grafted(tuned, base, tmp_path)
    other: Any = base.get_input_embeddings()
    with weights.grafted(body_of(tuned), weights.prefix[0]):
        assert torch.equal(embeddings.weight, other.weight)
        assert torch.equal(tuned.get_output_embeddings().weight, own)
    assert torch.equal(embeddings.weight, own)


def test_parts_that_are_the_same_cost_nothing_and_are_not_asked_about(tmp_path: Path) -> None:
    tuned, base = causal_lm(), causal_lm()
    with torch.no_grad():
        for parameter in blocks_of(body_of(base))[-1].parameters():
            parameter.add_(0.5)
    _, found = grafted(tuned, base, tmp_path)
    costs = [one.prefix_cost for one in found]
    assert [(cost.value, cost.low, cost.high) for cost in costs[:-1]] == [(0.0, 0.0, 0.0)] * (len(costs) - 1)
    assert costs[-1].value != 0.0


def test_grafts_of_every_block_that_cost_nothing_advise_nothing() -> None:
    costs = [graft(0.0), graft(-0.02, -0.03, -0.01)]
    advice = predicted_by_grafts(GraftInfo(measure="accuracy", ungrafted=0.8, examples=500), costs)
    assert advice is not None
    assert (advice.freeze_first, advice.basis) == (0, "none")
    assert "do not show what was learned" in advice.evidence
    without_answers = GraftInfo(measure="state_change", ungrafted=0.0, examples=500)
    assert predicted_by_grafts(without_answers, costs) is None
