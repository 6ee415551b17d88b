"""The sentences of a report: what they say, and what they leave unsaid where a number is not there."""

from __future__ import annotations

from typing import Any

import pytest

from layerdrift.contract.report import ChangedLatent, Measured, Report, SaeRun, Zone
from layerdrift.render import html, sentences
from tests.builders.reports import preliminary, report, turned_over, undefined


def test_the_words_follow_the_numbers() -> None:
    found = report()
    assert sentences.headline(found).startswith("Drift (1 - CKA) goes from 0.000 at the embeddings to 1.000 at block 3")
    assert "layers 0 to 1 close to the base model" in sentences.headline(found)
    assert sentences.advice(found).startswith("Freeze the embeddings and the first 1 blocks next time (predicted).")
    assert not any("No intervals were computed" in limit for limit in sentences.limits(found))
    assert any("No intervals were computed" in limit for limit in sentences.limits(report(intervals=False)))
    identical = report(warnings=[{"code": "identical_models", "message": "same"}])
    assert sentences.headline(identical).startswith("The models are identical at every layer on these texts")


def test_the_outcome_says_how_well_the_models_answer() -> None:
    assert sentences.outcome(report()) == (
        "Fine-tune after 10 steps: accuracy 90.0 % (95 %: 89.0 % to 91.0 %) on 50 texts (majority class 50.0 %)."
    )
    number = {"value": 3.5}
    outputs = {
        "kind": "causal_lm",
        "examples": 400,
        "base": {"perplexity": {"value": 4.0}},
        "tuned": {"perplexity": number},
        "disagreement": {"value": 0.1},
    }
    assert sentences.outcome(report(outputs=outputs, finetune=None)) == (
        "Tuned model: perplexity 3.50 over 400 tokens. Base model: perplexity 4.00 over 400 tokens. The two models "
        "disagree on 10.0 % of 400 outputs."
    )


def warned(code: str, message: str = "m") -> Report:
    return report(warnings=[{"code": code, "message": message}])


def zone(name: str, first: int, last: int) -> Zone:
    return Zone.model_validate({"name": name, "first": first, "last": last, "level": 0.1})


def latent(**changes: Any) -> ChangedLatent:
    body = {"layer": 1, "index": 7, "fate": "new", "cosine": 0.3, "base_rate": 0.001, "tuned_rate": 0.02}
    return ChangedLatent.model_validate({**body, "base": [], "tuned": [], **changes})


@pytest.mark.parametrize("code", ["identical_models", "identical_bodies"])
def test_models_that_are_the_same_are_said_to_be_and_get_the_evidence_as_advice(code: str) -> None:
    given = warned(code)
    assert sentences.headline(given) == "The models are identical at every layer on these texts: nothing drifted."
    assert sentences.advice(given) == given.recommendation.evidence


def test_a_drift_that_explains_no_changed_answer_is_not_told_as_a_finding() -> None:
    assert sentences.headline(warned("answers_not_explained")) == (
        "Drift (1 - CKA) is at most 1.000 at every layer, which does not explain the changed outputs."
    )


def test_neighbouring_zones_of_one_name_are_told_as_one() -> None:
    given = report()
    given.zones = [zone("general", 0, 0), zone("general", 1, 2), zone("specialised", 3, 3)]
    assert "layers 0 to 2 close to the base model; layer 3 changed most." in sentences.headline(given)
    page = html.render(given)
    assert "general: layers 0 to 2" in page
    assert "general: layer 0<" not in page


@pytest.mark.parametrize(
    ("moved", "told"),
    [
        ({0: 0.5}, None),
        ({1: 0.51}, "At layer 1 the activations still moved"),
        ({0: 0.6, 1: 0.7}, "At layers 0, 1 the activations still moved"),
        ({3: 0.9}, None),
    ],
    ids=["half", "one", "two", "not a layer of little drift"],
)
def test_layers_that_moved_in_what_cka_ignores_are_named(moved: dict[int, float], told: str | None) -> None:
    given = report()
    for index, value in moved.items():
        given.layers[index].similarity["token"].relative_l2_centred = Measured(value=value)
    said = sentences.headline(given)
    assert told in said if told else "still moved" not in said


def test_a_whole_report_has_nothing_pending() -> None:
    assert sentences.pending(report()) is None


def test_a_preliminary_report_says_what_is_to_come_and_how_long_it_takes_if_that_is_known() -> None:
    assert sentences.pending(preliminary(("sae", 150), ("causal", None), ("other", 5))) == (
        "Preliminary report: the analysis is still running. Still to come: sparse autoencoders and their features "
        "(about 2 min 30 s); what the change means for the outputs, and advice on freezing; other (about 5 s)."
    )


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "1 s"),
        (89.4, "89 s"),
        (90, "1 min 30 s"),
        (120, "2 min"),
        (594, "9 min 50 s"),
        (595, "10 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (26 * 3600, "26 h 0 min"),
    ],
)
def test_a_time_is_told_as_people_tell_it(seconds: float, told: str) -> None:
    assert sentences.duration(seconds) == told


@pytest.mark.parametrize(
    ("recommendation", "told"),
    [
        ({"freeze_first": 0, "basis": "none"}, "No advice on what to freeze. Because."),
        ({"freeze_first": 0, "basis": "validated"}, "Freeze nothing (validated). Because."),
        (
            {"freeze_first": 2, "basis": "validated"},
            "Freeze the embeddings and the first 2 blocks next time (validated). Because.",
        ),
    ],
)
def test_advice_says_how_far_it_can_be_trusted(recommendation: dict[str, Any], told: str) -> None:
    assert sentences.advice(report(recommendation=recommendation | {"evidence": "Because."})) == told


def outputs(**changes: Any) -> dict[str, Any]:
    return {"kind": "classifier", "examples": 50, "tuned": {"accuracy": {"value": 0.9}}, **changes}


@pytest.mark.parametrize("given", [None, {"kind": "classifier", "examples": 50}], ids=["no outputs", "base alone"])
def test_without_answers_of_the_tuned_model_there_is_no_outcome(given: dict[str, Any] | None) -> None:
    assert sentences.outcome(report(outputs=given)) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "Tuned model: accuracy 90.0 % on 50 texts."),
        ({"labelled": 30}, "Tuned model: accuracy 90.0 % on 30 texts."),
        ({"tuned": {"accuracy": {"value": None}}}, "Tuned model: not evaluated."),
        (
            {"accuracy_change": {"value": -0.05, "low": -0.1, "high": 0.0}},
            "Tuned model: accuracy 90.0 % on 50 texts. Change on the same texts: -5.0 (95 %: -10.0 to +0.0) points.",
        ),
        ({"accuracy_change": {"value": None}}, "Tuned model: accuracy 90.0 % on 50 texts."),
        (
            {"perplexity_ratio": {"value": 1.5, "low": 1.25, "high": 1.75}},
            "Tuned model: accuracy 90.0 % on 50 texts. Perplexity of the tuned model: 1.5 times the base model's "
            "(95 %: 1.25 to 1.75).",
        ),
        ({"disagreement": {"value": None}}, "Tuned model: accuracy 90.0 % on 50 texts."),
    ],
    ids=["whole", "labelled", "not evaluated", "change", "no change", "ratio", "no disagreement"],
)
def test_the_outcome_of_a_pair_leaves_out_what_has_no_number(changes: dict[str, Any], told: str) -> None:
    assert sentences.outcome(report(finetune=None, outputs=outputs(**changes))) == told


def test_what_autoencoders_do_not_tell_is_said_with_the_number_of_layers() -> None:
    given = report()
    assert sentences.withheld(given) is None
    assert given.layers[2].sae is not None
    given.layers[2].sae.withheld = "not reproducible"
    assert str(sentences.withheld(given)).startswith("Changed features are not reported at 1 of 4 layers:")
    assert sentences.withheld(report(with_sae=False)) is None


def test_a_changed_latent_is_told_by_its_rates_and_what_it_goes_with() -> None:
    plain = (
        "Fires on 0.10% of the tokens in the base model and on 2.00% in the tuned one; cosine of its directions there "
        "0.30."
    )
    assert sentences.latent(latent()) == plain
    whole = latent(
        label_association={"label": "neg", "share": 0.8, "expected": 0.5},
        promotes=["good", "it's"],
        probe={"label": "pos", "cosine": -0.254},
    )
    assert sentences.latent(whole) == (
        f"{plain} 80% of its activation is on texts labelled “neg”, which hold 50% of the tokens. Read with the output "
        "embeddings, its direction promotes 'good', \"it's\". Among the labels, its direction points most to “pos” "
        "(cosine -0.25)."
    )


@pytest.mark.parametrize(("share", "told"), [(None, False), (0.01, False), (0.0101, True)])
def test_texts_that_were_cut_are_said_on_the_first_screen_beyond_a_hundredth(share: float | None, told: bool) -> None:
    given = report()
    given.dataset.truncated_share, given.dataset.max_length = share, 128
    said = sentences.cautions(given)
    expected = ["1.0% of the texts' tokens lie beyond 128 tokens and were not read (analysis.max_length)."]
    assert said == (expected if told else [])


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        ("answers_worse", "the tuned model answers worse", ["The tuned model answers worse."]),
        ("adapter_base", "Another base.", ["Another base."]),
        ("blank_texts", "3 texts are blank", []),
    ],
)
def test_only_warnings_that_change_the_finding_stand_beside_it_as_sentences(
    code: str, message: str, said: list[str]
) -> None:
    assert sentences.cautions(warned(code, message)) == said


def test_tokens_seen_in_training_count_repetitions_and_are_those_asked_for_before_any_run() -> None:
    run = {"name": "training", "steps": 20, "planned_steps": 40, "batch": 2048, "learning_rate": 3e-3}
    made = SaeRun.model_validate(run | {"autoencoders": [], "curve": []})
    given = report(sae_runs=[made])
    assert sentences.seen(given) == "40960"
    before = report()
    assert before.request.analysis.sae is not None
    assert sentences.seen(before) == str(before.request.analysis.sae.tokens)
    without = {"base": {"uri": "file:///a"}, "tuned": {"uri": "file:///b"}, "dataset": {"uri": "s3://d/x.csv"}}
    assert sentences.seen(report(request=without | {"analysis": {"sae": None}})) == "0"


def test_a_fate_comes_with_what_the_floor_gave_and_without_a_warm_start_with_nothing() -> None:
    assert sentences.by_chance(turned_over(), latent(fate="shifted")) == "one of 7 in this layer; floor 3"
    assert sentences.by_chance(report(), latent()) == ""
    assert sentences.by_chance(report(with_sae=False), latent()) == ""


def test_limits_name_what_was_not_measured() -> None:
    told = " ".join(sentences.limits(report()))
    assert told == "Drift shows where representations changed, not whether the change helps or harms the task."
    bare = sentences.limits(report(intervals=False, noise_floors=[], finetune=None))
    assert [line.partition(" ")[0] for line in bare] == ["No", "The", "Whether", "Whether", "Drift"]
    with_reference = report(finetune=None, reference=reference([0.1]))
    assert not any("dataset.reference" in line for line in sentences.limits(with_reference))


def reference(drifts: list[float | None], **answers: Any) -> dict[str, Any]:
    drift = [{"value": value, "undefined": "no variance" if value is None else None} for value in drifts]
    given = {"outputs": {"kind": "causal_lm", "examples": 9, **answers}} if answers else {}
    return {"source": "s", "sha256": "f" * 64, "texts": 90, "tokens": 900, "drift": drift, **given}


def test_forgetting_is_told_by_the_layer_that_moved_most_and_by_the_answers_there() -> None:
    assert sentences.reference(report()) is None
    found = reference(
        [None, 0.25, 0.1, 0.2],
        perplexity_ratio={"value": 1.2, "low": 1.1, "high": 1.3},
        accuracy_change={"value": 0.01},
    )
    assert sentences.reference(report(reference=found)) == (
        "On 90 reference texts, which are not among the analysed ones, drift is largest at layer 1: 0.250; the tuned "
        "model's perplexity there is 1.2 times the base model's (95 %: 1.1 to 1.3); its accuracy there changes by +1.0 "
        "points."
    )
    undefined = sentences.reference(report(reference=reference([None, None])))
    assert str(undefined).endswith("not among the analysed ones, drift is undefined at every layer.")
    undefined_answers = reference([0.5], perplexity_ratio={"value": None}, accuracy_change={"value": None})
    assert str(sentences.reference(report(reference=undefined_answers))).endswith("drift is largest at layer 0: 0.500.")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (sentences.number(None), "—"),
        (sentences.number(0.0625, 3), "0.062"),
        (sentences.percent(None), "—"),
        (sentences.percent(1.0), "100.0 %"),
        (sentences.percent(-1e-5), "0.0 %"),
        (sentences.number(-1e-6), "0.000"),
        (sentences.interval(undefined()), "—"),
        (sentences.interval(Measured(value=0.5, low=0.4)), "—"),
        (sentences.interval(Measured(value=0.5, low=0.4, high=0.61), 1), "0.4 to 0.6"),
        (sentences.excess(None, 2.0), "—"),
        (sentences.excess(0, None), "+0 ± 0"),
        (sentences.excess(-3, 1.6), "-3 ± 2"),
    ],
)
def test_a_cell_without_a_number_is_a_dash(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_resolution_of_a_layer_is_the_drift_of_rounding_if_that_was_measured() -> None:
    given = report()
    assert sentences.resolution(given.layers[1]) == 0.001
    given.layers[1].noise_floors = {"reseed": 0.02}
    assert sentences.resolution(given.layers[1]) is None
