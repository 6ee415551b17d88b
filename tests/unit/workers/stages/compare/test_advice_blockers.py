"""What the answers say against advice on freezing."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from workers.results.effects import Recommendation
from workers.results.measured import Measured
from workers.results.outputs import ModelOutputs, Outputs
from workers.stages.compare.advice_blockers import blockers_of, unless_blocked

ADVICE = Recommendation(freeze_first=3, basis="predicted", evidence="The curve says so.")
LOW, HIGH = [0.0, 0.01, 0.05], [0.0, 0.2, 0.5]


def outputs(kind: Literal["classifier", "causal_lm"] = "causal_lm", examples: int = 500, **changes: Any) -> Outputs:
    return Outputs(kind=kind, examples=examples, **changes)


def number(value: float, low: float, high: float) -> Measured:
    return Measured(value=value, low=low, high=high)


SOUND_LM = outputs(perplexity_ratio=number(0.9, 0.85, 0.95), disagreement=number(0.2, 0.19, 0.21))
WRECKED_LM = outputs(perplexity_ratio=number(15.7, 14, 17), disagreement=number(0.67, 0.65, 0.69))
SOUND = outputs(
    kind="classifier",
    tuned=ModelOutputs(accuracy=number(0.8, 0.77, 0.83), mcc=Measured(value=0.6, noise_floor=0.14)),
    accuracy_change=number(0.3, 0.2, 0.4),
    majority_accuracy=0.5,
    majority_change=number(0.3, 0.2, 0.4),
)
MAJORITY = outputs(
    kind="classifier",
    tuned=ModelOutputs(accuracy=number(0.5, 0.45, 0.55), mcc=Measured(value=0.0, noise_floor=0.14)),
    majority_accuracy=0.5,
)
BEATEN = outputs(
    kind="classifier",
    tuned=ModelOutputs(accuracy=number(0.8, 0.75, 0.85), mcc=Measured(value=0.3, noise_floor=0.14)),
    majority_accuracy=0.95,
    majority_change=number(-0.15, -0.2, -0.1),
)
RARE_LABELS = outputs(
    kind="classifier",
    tuned=ModelOutputs(accuracy=number(0.97, 0.93, 0.99), mcc=Measured(value=0.66, noise_floor=0.14)),
    majority_accuracy=0.95,
    majority_change=number(0.02, -0.01, 0.05),
)
WORSE = outputs(kind="classifier", accuracy_change=number(-0.1, -0.15, -0.05))


@pytest.mark.parametrize("given", [None, SOUND_LM, SOUND, RARE_LABELS])
def test_a_sound_model_on_texts_enough_gets_its_advice(given: Outputs | None) -> None:
    assert unless_blocked(ADVICE, blockers_of(given, HIGH, 0.0, 200)) == ADVICE


@pytest.mark.parametrize(
    ("given", "drift", "texts", "code", "words"),
    [
        (WRECKED_LM, HIGH, 200, "answers_worse", "15.7 times"),
        (WORSE, HIGH, 200, "answers_worse", "10.0 points below"),
        (MAJORITY, HIGH, 200, "no_better_than_majority", "no better than chance"),
        (BEATEN, HIGH, 200, "no_better_than_majority", "below the majority class"),
        (outputs(disagreement=number(0.67, 0.65, 0.69)), LOW, 200, "answers_not_explained", "67% of the outputs"),
        (SOUND_LM, HIGH, 99, None, "99 texts are too few"),
    ],
)
def test_what_speaks_against_advice_takes_it_back_with_the_reason(
    given: Outputs, drift: list[float], texts: int, code: str | None, words: str
) -> None:
    found = blockers_of(given, drift, 0.0, texts)
    assert [blocker.code for blocker in found] == [code]
    advice = unless_blocked(ADVICE, found)
    assert (advice.basis, advice.freeze_first) == ("none", 0)
    assert words in advice.evidence


def test_a_new_head_explains_changed_answers_and_an_unmoved_body_needs_no_explanation() -> None:
    changed = outputs(kind="classifier", disagreement=number(0.6, 0.5, 0.7))
    assert [blocker.code for blocker in blockers_of(changed, LOW, 0.01, 200)] == ["answers_not_explained"]
    assert blockers_of(changed, LOW, 0.9, 200) == []
    assert blockers_of(changed, LOW, None, 200) == []
    assert blockers_of(changed, [0.0, 0.0], 0.0, 200) == []
    assert len(blockers_of(changed, LOW, 0.01, 200, last_moved=0.9)) == 1  # a classifier's few answers are no near ties


@pytest.mark.parametrize(
    ("last_moved", "codes"), [(0.05, ["answers_not_explained"]), (0.3, []), (None, ["answers_not_explained"])]
)
def test_a_language_models_answers_are_explained_by_a_last_layer_that_moved(
    last_moved: float | None, codes: list[str]
) -> None:
    changed = Outputs(kind="causal_lm", examples=900, disagreement=Measured(value=0.42, low=0.4, high=0.44))
    assert [blocker.code for blocker in blockers_of(changed, LOW, 0.0, 200, last_moved)] == codes
