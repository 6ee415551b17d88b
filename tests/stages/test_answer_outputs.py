"""Answers of chats, preferences and choices: both models' numbers beside sums over each text alone, run either way."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.tables.chats import Chat, chat_of
from layerdrift.contract.request import AnalysisRequest
from tests.builders.chats import chat_rows, chats, language_model, resolved_chats
from tests.builders.stages import fine_tuned, pair_context, request, resolved
from tests.builders.texts import make_texts
from tests.stages.test_layered import assert_same, layered
from workers.models.chats import TOKEN_ROLES
from workers.models.device import best_device
from workers.models.loading import load_headed
from workers.models.texts import encode
from workers.results.outputs import Outputs
from workers.stages.common.context import PairContext
from workers.stages.common.inputs import Resolved, Split
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.extract.whole_models import extract_whole

TEXTS = 60


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base after it learnt the judgements."""
    settings = {"objective": "sft", "epochs": 3, "learning_rate": 5e-3, "precision": "float32"}
    asked = AnalysisRequest.model_validate(request().model_dump() | {"tuned": None, "finetune": settings})
    folder = tmp_path_factory.mktemp("tuned")
    return fine_tuned(asked, resolved_chats(base), folder / "tuned").checkpoint.folder


def context_of(base: Path, tuned: Path, given: list[Chat], folder: Path, length: int = 64) -> PairContext:
    rows = chat_rows(base, given)
    found: Resolved = replace(resolved(base), split=Split(rows, [], []), length=length, usable_rows=len(rows))
    return pair_context(found, tuned, folder / "scratch", request(analysis={"sae": None}))


def outputs(context: PairContext, way: Any) -> Outputs:
    found = evaluate_outputs(context, [0.1] * 4, way(context)).outputs
    assert found is not None
    return found


def whole(context: PairContext) -> Any:
    return extract_whole(context, None)


def naive(folder: Path, context: PairContext, texts: list[str]) -> list[list[float]]:
    """By text, the log-probabilities of the tokens of its answers, the model reading that text alone."""
    headed = load_headed(folder, "/base/uri", best_device())
    assert headed is not None
    found = []
    for one in encode(context.resolved.tokenizer, texts, None):
        with torch.no_grad():
            logits: Any = headed.model(input_ids=torch.tensor([one.ids])).logits
        log_probs = logits[0].double().log_softmax(-1)
        roles = [TOKEN_ROLES[role] for role in one.roles or []]
        found.append(
            [float(log_probs[at - 1, token]) for at, token in enumerate(one.ids) if at and roles[at] == "assistant"]
        )
    return found


def test_answers_are_measured_by_their_tokens_and_their_ends(base: Path, tuned: Path, tmp_path: Path) -> None:
    context = context_of(base, tuned, chats(TEXTS, seed=5), tmp_path)
    found = outputs(context, whole).answers
    assert found is not None
    texts = [row.text for row in context.resolved.split.analysed]
    by_side = {name: naive(folder, context, texts) for name, folder in (("base", base), ("tuned", tuned))}
    assert found.tokens == sum(map(len, by_side["base"])) == 2 * TEXTS  # a word and the end token
    means = {}
    for name, side in (("base", found.base), ("tuned", found.tuned)):
        every = [value for text in by_side[name] for value in text]
        means[name] = sum(every) / len(every)
        assert side is not None
        assert side.log_prob.value == pytest.approx(means[name], abs=1e-4)
        assert side.perplexity.value == pytest.approx(math.exp(-means[name]), rel=1e-4)
        assert side.end_probability is not None
        ends = [math.exp(text[-1]) for text in by_side[name]]
        assert side.end_probability.value == pytest.approx(sum(ends) / len(ends), abs=1e-4)
    assert found.log_prob_change is not None
    assert found.log_prob_change.value == pytest.approx(means["tuned"] - means["base"], abs=1e-4)
    assert found.log_prob_change.low is not None
    assert found.log_prob_change.low > 0  # it learned to judge
    assert found.perplexity_ratio is not None
    assert (found.perplexity_ratio.high or 1.0) < 1
    assert found.tuned.end_probability is not None
    assert (found.tuned.end_probability.value or 0) > 0.9


def test_preferences_are_sums_over_whole_answers(base: Path, tuned: Path, tmp_path: Path) -> None:
    context = context_of(base, tuned, chats(TEXTS, seed=5, preferences=True), tmp_path)
    found = outputs(context, whole).preferences
    assert found is not None
    rows = context.resolved.split.analysed
    sums = {
        (name, which): [sum(text) for text in naive(folder, context, texts)]
        for name, folder in (("base", base), ("tuned", tuned))
        for which, texts in (("chosen", [row.text for row in rows]), ("rejected", [row.others[0] for row in rows]))
    }
    for name, accuracy in (("base", found.base_accuracy), ("tuned", found.tuned_accuracy)):
        right = [one > other for one, other in zip(sums[name, "chosen"], sums[name, "rejected"], strict=True)]
        assert accuracy is not None
        assert accuracy.value == pytest.approx(sum(right) / TEXTS)
    margins = [
        0.1 * ((sums["tuned", "chosen"][n] - sums["base", "chosen"][n])
               - (sums["tuned", "rejected"][n] - sums["base", "rejected"][n]))
        for n in range(TEXTS)
    ]  # fmt: skip
    assert found.reward_margin is not None
    assert found.reward_margin.value == pytest.approx(sum(margins) / TEXTS, abs=1e-4)
    assert found.reward_accuracy is not None
    assert found.reward_accuracy.value == pytest.approx(sum(one > 0 for one in margins) / TEXTS)
    assert (found.pairs, found.skipped, found.beta) == (TEXTS, 0, 0.1)


def questions() -> list[Chat]:
    """Sentences with two or three words to choose from."""
    found = []
    for number, text in enumerate(make_texts(TEXTS, seed=5)):
        choices = ["great", "awful", "very dull"][: 2 + number % 2]
        record = {"question": text, "choices": choices, "answer": number % 2}
        found.append(chat_of(record, "multiple_choice"))
    return found


def test_choices_are_judged_by_their_log_probability(base: Path, tuned: Path, tmp_path: Path) -> None:
    context = context_of(base, tuned, questions(), tmp_path)
    found = outputs(context, whole).choices
    assert found is not None
    answers: dict[str, list[int]] = {}
    for name, folder in (("base", base), ("tuned", tuned)):
        answers[name] = []
        for row in context.resolved.split.analysed:
            sums = [sum(one) for one in naive(folder, context, [row.text, *row.others])]
            answers[name].append(sums.index(max(sums)))
    right = {name: [one == 0 for one in some] for name, some in answers.items()}
    assert found.base is not None
    assert found.base.accuracy.value == pytest.approx(sum(right["base"]) / TEXTS)
    assert found.tuned.accuracy.value == pytest.approx(sum(right["tuned"]) / TEXTS)
    assert found.chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.changed is not None
    changed = sum(one != other for one, other in zip(answers["base"], answers["tuned"], strict=True))
    assert found.changed.value == pytest.approx(changed / TEXTS)
    assert found.mcnemar_p is not None
    assert 0 < found.mcnemar_p <= 1


def test_texts_that_are_cut_are_not_judged(base: Path, tuned: Path, tmp_path: Path) -> None:
    context = context_of(base, tuned, chats(TEXTS, seed=5, preferences=True), tmp_path, length=16)
    found = outputs(context, whole).preferences
    assert found is not None
    assert found.skipped > 0
    assert found.pairs + found.skipped == TEXTS


@pytest.mark.parametrize("kind", ["preferences", "choices"])
def test_block_by_block_the_numbers_are_the_same(base: Path, tuned: Path, kind: str, tmp_path: Path) -> None:
    given = questions() if kind == "choices" else chats(TEXTS, seed=5, preferences=True)
    context = context_of(base, tuned, given, tmp_path)
    one, other = outputs(context, whole), outputs(context, layered)
    assert one.answers is not None
    assert getattr(one, kind) is not None
    assert_same(one.answers, other.answers, 1e-4)
    assert_same(getattr(one, kind), getattr(other, kind), 1e-4)


def test_texts_have_no_answers(base: Path, tuned: Path, tmp_path: Path) -> None:
    context = pair_context(resolved(base, texts=90), tuned, tmp_path / "scratch", request(analysis={"sae": None}))
    found = outputs(context, whole)
    assert (found.answers, found.preferences, found.choices) == (None, None, None)


def test_a_model_that_never_learnt_to_stop_is_told(base: Path, tuned: Path, tmp_path: Path) -> None:
    given = chats(TEXTS, seed=5)
    stopping = context_of(base, tuned, given, tmp_path)
    backwards = context_of(tuned, base, given, tmp_path / "other")
    said = [
        [one for one in evaluate_outputs(context, [0.1] * 4, whole(context)).warnings if one.code == "never_stops"]
        for context in (stopping, backwards)
    ]
    assert said[0] == []
    (warning,) = said[1]
    assert "it will go on until the limit of tokens (base model 0.9" in warning.message
