"""Policies as people write them, and the starter policy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from layerdrift import policies
from layerdrift.contract.errors import InputError
from layerdrift.contract.names import MUCH_MOVED
from layerdrift.contract.report import Report
from layerdrift.gate import evaluate_policy
from tests.builders.reports import changed, preliminary, report, sound, sound_language


def test_the_starter_policy_is_one_and_judges_a_sound_and_a_wrecked_model() -> None:
    starter = policies.load(policies.starter())
    assert evaluate_policy(starter, sound()).decision == "pass"
    wrecked = sound()
    for layer in wrecked.layers[:3]:
        layer.similarity["token"].cka.low = 0.4
    found = evaluate_policy(starter, wrecked)
    assert found.decision == "fail"
    assert [check.id for check in found.checks if check.decision == "fail"] == ["early-layers-kept"]


WARNING = {"code": "", "message": "m"}
HEADLESS = ("outputs", None)
LANGUAGE = {"kind": "causal_lm", "examples": 900}


def ends(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("rule", "path", "broken", "held"),
    [
        ("something-was-tuned", "warnings", [WARNING | {"code": "identical_models"}], []),
        ("bodies-differ", "warnings", [WARNING | {"code": "identical_bodies"}], []),
        ("early-layers-kept", "layers.1.similarity.token.cka", ends(0.85, 0.99), ends(0.91, 0.99)),
        ("early-features-kept", "layers.1.similarity.token.cka_standardized", ends(0.7, 0.9), ends(0.85, 0.9)),
        ("early-layers-not-scaled", "layers.1.similarity.token.relative_l2_centred", ends(0.5, 0.7), ends(0.2, 0.7)),
        ("early-features-still-fit", "layers.1.sae.transfer_excess", 0.2, 0.1),
        (
            "better-than-majority-class",
            "outputs.tuned.mcc",
            {"value": 0.0, "noise_floor": 0.28},
            {"value": 0.3, "noise_floor": 0.28},
        ),
        ("not-worse-than-majority-class", "outputs.majority_change", ends(-0.1, -0.01), ends(-0.1, 0.01)),
        ("answers-evaluated", "warnings", [WARNING | {"code": "answers_not_evaluated"}], []),
        (
            "perplexity-kept",
            "outputs",
            LANGUAGE | {"perplexity_ratio": ends(1.3, 1.5)},
            LANGUAGE | {"perplexity_ratio": ends(1.1, 1.5)},
        ),
        ("answers-explained-by-drift", "warnings", [WARNING | {"code": "answers_not_explained"}], []),
        ("accuracy-kept", "outputs.accuracy_change", ends(-0.09, -0.03), ends(-0.09, 0.0)),
        ("accuracy-shown-kept", "outputs.accuracy_change", ends(-0.09, 0.0), ends(-0.04, 0.0)),
        ("measures-agree", "warnings", [WARNING | {"code": "measures_disagree"}], []),
        (
            "answers-kept-without-labels",
            "outputs",
            {"kind": "classifier", "examples": 90, "disagreement": ends(0.4, 0.6)},
            {"kind": "classifier", "examples": 90, "disagreement": ends(0.2, 0.6), "accuracy_change": None},
        ),
        ("reference-perplexity-kept", "reference", {"outputs": LANGUAGE | {"perplexity_ratio": ends(1.3, 2)}}, None),
        (
            "reference-accuracy-kept",
            "reference",
            {"outputs": {"kind": "classifier", "examples": 9, "accuracy_change": ends(-0.3, -0.1)}},
            None,
        ),
    ],
)
def test_every_rule_of_the_starter_policy_fails_where_it_must_and_nowhere_else(
    rule: str, path: str, broken: Any, held: Any
) -> None:
    if path == "reference" and broken is not None:
        broken = {"source": "s", "sha256": "f" * 64, "texts": 90, "tokens": 900, "drift": [], **broken}
    starter = policies.load(policies.starter())
    severity = next(one.severity for one in starter.rules if one.id == rule)
    found = {check.id: check for check in evaluate_policy(starter, changed(path, broken)).checks}
    assert found[rule].decision == severity
    assert found[rule].evaluated
    found = {check.id: check for check in evaluate_policy(starter, changed(path, held)).checks}
    assert found[rule].decision == "pass"


@pytest.mark.parametrize(
    ("rule", "path", "broken", "held"),
    [
        ("embeddings-keep-something", "layers.-1.similarity.mean.cka", ends(0.0, 0.15), ends(0.1, 0.3)),
        ("last-layer-keeps-something", "layers.-1.relative_drift", ends(0.9, 1.0), ends(0.7, 1.0)),
    ],
)
def test_models_without_a_head_are_judged_by_their_last_layer_and_others_are_not(
    rule: str, path: str, broken: Any, held: Any
) -> None:
    starter = policies.load(policies.starter())
    for value, decision in ((broken, "fail"), (held, "pass")):
        given = changed(path, value)
        headless = given.model_copy(update={"outputs": None})
        found = {check.id: check for check in evaluate_policy(starter, headless).checks}
        assert found[rule].decision == decision
        asked = {check.id: check for check in evaluate_policy(starter, given).checks}
        assert (asked[rule].decision, asked[rule].matched) == ("pass", 0)
        assert "skipped: applies only without outputs.kind" in asked[rule].detail


def test_every_rule_of_the_starter_policy_is_tried_above() -> None:
    tried = {
        parameters[0]
        for test in (
            test_every_rule_of_the_starter_policy_fails_where_it_must_and_nowhere_else,
            test_models_without_a_head_are_judged_by_their_last_layer_and_others_are_not,
        )
        for parameters in test.pytestmark[0].args[1]
    }
    assert tried == {rule.id for rule in policies.load(policies.starter()).rules}


def warned(code: str) -> tuple[str, list[dict[str, str]], list[Any]]:
    return "warnings", [WARNING | {"code": code}], []


LANGUAGE_RULES: dict[str, tuple[str, Any, Any]] = {
    "something-was-tuned": warned("identical_models"),
    "weights-differ": warned("identical_weights"),
    "adapter-of-this-base": warned("adapter_base"),
    "learnt-to-stop": warned("never_stops"),
    "stops-at-its-own-tokens": warned("generation_tokens"),
    "special-tokens-agree": warned("special_tokens_differ"),
    "chat-template-kept": warned("chat_template_changed"),
    "added-tokens-trained": warned("untrained_tokens"),
    "one-bos": warned("double_bos"),
    "answers-no-worse": ("outputs.answers.perplexity_ratio", ends(1.01, 1.2), ends(0.99, 1.2)),
    "perplexity-kept": (
        "outputs",
        LANGUAGE | {"perplexity_ratio": ends(1.3, 1.5)},
        LANGUAGE | {"perplexity_ratio": ends(1.1, 1.5)},
    ),
    "chosen-answers-not-lost": ("outputs.answers.perplexity_ratio", ends(2.1, 3.0), ends(1.9, 3.0)),
    "prefers-chosen-answers": ("outputs.preferences.accuracy_change", ends(-0.2, -0.01), ends(-0.2, 0.01)),
    "choices-kept": ("outputs.choices.accuracy_change", ends(-0.2, -0.03), ends(-0.2, -0.01)),
    "early-layers-kept": ("layers.1.similarity.token.cka", ends(0.85, 0.99), ends(0.91, 0.99)),
    "early-layers-not-scaled": ("layers.1.similarity.token.relative_l2_centred", ends(0.5, 0.7), ends(0.2, 0.7)),
    "reference-perplexity-kept": (
        "reference",
        {"source": "s", "sha256": "f" * 64, "texts": 90, "tokens": 900, "drift": []}
        | {"outputs": LANGUAGE | {"perplexity_ratio": ends(1.3, 2)}},
        None,
    ),
    "answers-explained-by-drift": warned("answers_not_explained"),
    "answers-evaluated": warned("answers_not_evaluated"),
}


def test_every_rule_for_language_models_is_tried_below() -> None:
    assert set(LANGUAGE_RULES) == {rule.id for rule in policies.load(policies.starter("language")).rules}


@pytest.mark.parametrize("rule", LANGUAGE_RULES)
def test_every_rule_for_language_models_fails_where_it_must_and_alone(rule: str) -> None:
    starter = policies.load(policies.starter("language"))
    path, broken, held = LANGUAGE_RULES[rule]
    severity = next(one.severity for one in starter.rules if one.id == rule)
    given = sound_language()  # of preferences, which may make the chosen answers less probable
    if rule == "answers-no-worse":
        given = changed("outputs.preferences", None, given)
    found = evaluate_policy(starter, changed(path, broken, given)).checks
    assert [(check.id, check.decision) for check in found if check.decision != "pass"] == [(rule, severity)]
    found = evaluate_policy(starter, changed(path, held, given)).checks
    assert [check.id for check in found if check.decision != "pass"] == []


def test_the_starter_policy_is_that_of_what_was_compared() -> None:
    assert policies.starter_for(sound()) == "classifier"
    assert policies.starter_for(sound_language()) == "language"
    verdict = policies.starter_verdict(changed("warnings", [WARNING | {"code": "never_stops"}], sound_language()))
    assert verdict is not None
    assert [check.id for check in verdict.checks if check.decision == "fail"] == ["learnt-to-stop"]


@pytest.mark.parametrize(
    ("change", "failed", "warned"),
    [
        ((0.0, -0.04, 0.04), [], []),
        ((-0.04, -0.1, 0.02), [], ["accuracy-shown-kept"]),
        ((-0.08, -0.12, -0.04), ["accuracy-kept"], ["accuracy-shown-kept"]),
    ],
    ids=["equal", "not known", "worse"],
)
def test_the_starter_policy_judges_the_paired_change_of_accuracy_by_its_interval(
    change: tuple[float, float, float], failed: list[str], warned: list[str]
) -> None:
    body = sound().model_dump()
    body["outputs"]["accuracy_change"] = dict(zip(("value", "low", "high"), change, strict=True))
    found = evaluate_policy(policies.load(policies.starter()), Report.model_validate(body))
    assert [check.id for check in found.checks if check.decision == "fail"] == failed
    assert [check.id for check in found.checks if check.decision == "warn"] == warned


YAML = """\
rules:
  - id: kept
    path: layers[0].drift
    max: 0.1
    message: it moved
  - id: wrong
    severity: fatal
    path: layers[0].drfit
    mox: 1
    message: it moved
"""


def test_a_mistake_in_a_file_is_named_with_its_line() -> None:
    with pytest.raises(policies.PolicyError) as raised:
        policies.load(YAML, "policy.yaml")
    lines = [error.detail for error in raised.value.errors]
    assert any(line.startswith("policy.yaml:7:5: severity: ") for line in lines)
    assert any(line.startswith("policy.yaml:8:5: path: ") and "did you mean drift?" in line for line in lines)
    assert "policy.yaml:9:5: mox: there is no field 'mox'; did you mean max?" in lines
    for text, message in {
        "": "p:1:1: the file is empty",
        "rules: [": "p:1:9: not valid YAML",
        "rules: []\nrules: []": "p:2:1: not valid YAML: duplicate key rules",
        "- 1": "p:1:1: must be an object; it is [1]",
        "rules:\n  - id: a\n    path: layers[0].drift\n    max: 1": "p:2:5: message: this field is required",
    }.items():
        with pytest.raises(policies.PolicyError) as raised:
            policies.load(text, "p")
        assert message in raised.value.errors[0].detail


def test_what_the_gate_cannot_judge_is_named_with_its_line_too() -> None:
    text = json.dumps({"rules": [{"id": "a", "message": "m", "path": "layers[9].drift", "max": 1}]}, indent=1)
    asked = policies.load(text, "p.json")
    with pytest.raises(InputError) as raised:
        evaluate_policy(asked, report())
    found = policies.located(text, "p.json", raised.value)
    assert found.errors[0].detail == "p.json:6:4: rule a: layers[9].drift matches nothing in this report"


def test_text_and_advice_call_a_layer_moved_where_the_starter_policy_fails() -> None:
    (rule,) = (one for one in policies.load(policies.starter()).rules if one.id == "early-layers-not-scaled")
    assert rule.max == MUCH_MOVED


def problems_of(text: str) -> list[str]:
    with pytest.raises(policies.PolicyError) as raised:
        policies.load(text, "p")
    return [error.detail for error in raised.value.errors]


RULE = {"id": "a", "message": "m", "path": "layers[0].drift", "max": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: &all []\nmore: *all", "p:2:7: not valid YAML: aliases (*) are not supported"),
        ("rules: !!python/name:os.system []", "tags (tag:yaml.org,2002:python/name:os.system) are not supported"),
        ("a: !!int 1", "tags (tag:yaml.org,2002:int) are not supported"),
        ("[" * 17 + "]" * 17, "p:1:17: not valid YAML: more than 16 levels"),
        ("[" + "1," * 10_000 + "]", "more than 10000 values"),
        ("max: " + "1" * 2_001, "p:1:6: not valid YAML: an unquoted value of 2001 characters"),
        ("#" * 262_145, "it has 262145 characters; the limit for policies is 262144"),
        ("rules: [2024-13-45]", "a value cannot be parsed (ValueError: month must be in 1..12)"),
        ("rules: []\x00", "p:1:1: not valid YAML"),
        ("? [1]\n: 2", "p:1:3: not valid YAML: a key must be a string, not a list"),
        ("a: 1\n---\nb: 2", "p:2:1: not valid YAML"),
    ],
    ids=["alias", "python tag", "tag", "depth", "values", "number", "size", "date", "control", "list as key", "two"],
)
def test_what_no_policy_needs_is_refused_before_it_is_built(text: str, said: str) -> None:
    (detail,) = problems_of(text)
    assert said in detail


def test_a_long_text_in_quotes_is_no_number_and_stands() -> None:
    text = json.dumps({"description": "x" * 2_000, "rules": [RULE]})
    assert policies.load(text).description == "x" * 2_000


def test_of_very_many_mistakes_the_first_hundred_are_named() -> None:
    rules = [{**RULE, "id": f"a{number}", "max": "much"} for number in range(150)]
    assert len(problems_of(json.dumps({"rules": rules}))) == policies.MAX_ERRORS == 100


@pytest.mark.parametrize("indent", [None, "\t"])
def test_json_is_read_as_json(indent: str | None) -> None:
    rules = [{"id": "a", "path": "layers[*].drift", "max": 1e-6, "message": "moved 😀"}]
    policy = policies.load(json.dumps({"rules": rules}, indent=indent))
    assert (policy.rules[0].max, policy.rules[0].message) == (1e-6, "moved 😀")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", ".nan"])
def test_a_bound_that_is_no_finite_number_is_refused(number: str) -> None:
    with pytest.raises(InputError, match="max: must be a"):
        policies.load(f'{{"rules": [{{"id": "a", "path": "layers[*].drift", "max": {number}, "message": "m"}}]}}')


def test_words_that_python_takes_for_numbers_stay_words() -> None:
    assert [policies.parsed(text) for text in ("NaN", "Infinity", "1e-6")] == ["NaN", "Infinity", 1e-6]


def test_a_key_that_stands_twice_is_refused_in_json_too() -> None:
    with pytest.raises(InputError, match="duplicate key id"):
        policies.load('{"rules": [{"id": "a", "id": "b", "path": "layers[*].drift", "max": 1}]}')


def test_a_number_without_a_point_has_an_exponent_in_yaml_too() -> None:
    assert policies.load("rules:\n  - {id: a, path: 'layers[*].drift', max: 1e-6, message: m}").rules[0].max == 1e-6


def test_json_and_yaml_say_the_same() -> None:
    yaml = "rules:\n- {id: a, message: m, path: 'layers[0].drift', max: 1}\n"
    assert policies.load(json.dumps({"rules": [RULE]})) == policies.load(yaml)


def test_a_mistake_in_a_field_that_is_not_there_stands_at_its_rule() -> None:
    without_path = {key: value for key, value in RULE.items() if key != "path"}
    (detail,) = problems_of(json.dumps({"rules": [RULE | {"id": "b"}, without_path]}, indent=1))
    assert detail == "p:9:3: path: this field is required"


def test_a_problem_of_the_whole_policy_stands_at_its_beginning() -> None:
    error = InputError.at("/rules/7/path", "rule a: gone")
    assert policies.located(json.dumps({"rules": [RULE]}), "p", error).errors[0].detail == "p:1:2: rule a: gone"


def test_the_starter_policy_decides_on_a_whole_report() -> None:
    assert policies.starter_decision(sound()) == "pass"
    assert policies.starter_decision(report()) == "fail"


def test_the_starter_policy_has_no_decision_where_numbers_did_not_make_it() -> None:
    few = sound()
    few.layers[0].similarity["token"].cka.low = None
    verdict = policies.starter_verdict(few)
    assert verdict is not None
    assert (verdict.decision, verdict.evaluated) == ("fail", False)
    assert policies.starter_decision(few) is None


def test_the_starter_policy_has_no_verdict_on_a_preliminary_report() -> None:
    assert policies.starter_verdict(preliminary(("sae", None))) is None
    assert policies.starter_decision(preliminary(("sae", None))) is None
