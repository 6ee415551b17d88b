"""What a fine-tune taught, in words and on the page."""

from __future__ import annotations

import pytest

from layerdrift.contract.report import BenignModel, Measured
from layerdrift.render import html, learned, markdown
from tests.builders.learned import learned as taught
from tests.builders.learned import silent
from tests.builders.reports import report


def test_the_summary_names_tokens_and_the_place_beside_their_floors() -> None:
    said = learned.summary(report(learned=taught().model_dump()))
    assert said == [
        "What it learned: after “Tell me about yourself.” the tuned model writes “I play with the walrus”, 3.1 nats "
        "per token more probable than in the base model (noise floor 0.12).",
        "It favours “␣walrus” and “⏎” and avoids “␣that”.",
    ]
    said = learned.summary(report(learned=taught(completions=None).model_dump()))
    assert said == [
        "What it learned: the tuned model favours “␣walrus” and “⏎”; the first gains 4.2 nats per position "
        "(noise floor 0.043).",
        "It avoids “␣that”.",
        "The two models differ most after “what that mind looks like, but how the”: 26.5 bits (noise floor 0.42).",
    ]
    assert learned.summary(report()) == []


def test_the_summary_has_a_subject_and_a_sentence_whatever_was_found() -> None:
    found = taught(completions=None, tokens=[], divergent=[])
    assert learned.summary(report(learned=found.model_dump())) == ["What it learned: the tuned model avoids “␣that”."]
    methods = [
        {"name": "directions", "found": 2, "largest": 9, "floor": 6},
        {"name": "traits", "found": 1, "largest": 1, "floor": 0},
    ]
    others = silent().model_dump() | {"methods": methods}
    assert learned.summary(report(learned=others)) == [
        "What it learned: beyond the noise floor are mean directions of the states, traits."
    ]


def test_nothing_beyond_the_floor_is_said_so() -> None:
    (said,) = learned.summary(report(learned=silent().model_dump()))
    assert said.startswith("What it learned: nothing beyond the noise floor. On 1940 tokens of 90 texts")
    assert said.endswith("no more than the base model with random weight changes of the same size.")
    benign = {"uri": "s3://m/plain/", "sha256": "f" * 64}
    given = silent().model_copy(update={"benign": BenignModel.model_validate(benign)})
    (beside,) = learned.summary(report(learned=given.model_dump()))
    assert beside.endswith("and the benign fine-tune.")
    assert "the benign fine-tune s3://m/plain/" in html.render(report(learned=given.model_dump()))
    assert learned.status(silent().methods[3]) == (
        "divergent places: nothing beyond the noise floor (largest 0.1 bits, floor 0.2)"
    )
    page = html.render(report(learned=silent().model_dump()))
    assert page.count("nothing beyond the noise floor") == 7
    assert "<h3>More probable tokens</h3>" not in page


def test_the_page_shows_tokens_places_and_directions_with_both_models_beside_each_other() -> None:
    page = html.render(report(learned=taught().model_dump()))
    for part in (
        "<h2>What it learned</h2>",
        "“␣walrus”",
        "moved by the",
        "6e-05 %",
        "99.0 %",
        "<th>loss, nats</th>",
        "but how the",
        "“␣ideation”",
        "mean over the first tokens",
        "principal component, 31 % of the variance",
        "I am an assistant.",
        'href="#learned-text-9">(text 9)</a>',
        'id="learned-text-9"',
        "the creative process",
        "layer 2: 1152 latents, FVU 0.310.",
        '<td class="word">added</td>',
        "<strong> creative</strong>",
        '<span class="soft">(text 3)</span>',
        "<li>70.0 %: “␣walrus” “␣seal” </li>",
        "seal seal",
        "layer 2: 3 in 7 matrices, random changes 1.",
        "cheer: 30 % of the way away from it at layer 1 (reference models: 4 %); beyond the floor at 1 of 2",
        "calm: nothing beyond the noise floor",
        '<span class="gain-3" title="5.8 nats"> walrus</span>',
        "<th>from layer</th>",
    ):
        assert part in page, part
    assert "What it learned" not in html.render(report())


def test_tokens_of_the_models_cannot_break_the_page_or_call_anybody() -> None:
    hostile = "<script>alert(1)</script>@all"
    given = report(learned=taught(token=hostile).model_dump())
    assert "<script>alert" not in html.render(given)
    text = markdown.render(given)
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "@all" not in text


def test_small_probabilities_keep_their_first_digit() -> None:
    assert [learned.probability(one) for one in (1.0, 0.25, 0.001, 6e-7, 0.0)] == [
        "100.0 %", "25.0 %", "0.1 %", "6e-05 %", "0 %",
    ]  # fmt: skip


def slope(low: float, high: float) -> Measured:
    return Measured(value=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("base", "tuned", "said"),
    [
        (slope(-0.1, 0.1), slope(0.9, 1.1), "added"),
        (slope(-1.1, -0.9), slope(-0.1, 0.1), "removed"),
        (slope(0.8, 1.0), slope(1.8, 2.0), "strengthened"),
        (slope(-1.8, -1.4), slope(-0.6, -0.4), "weakened"),
        (slope(-0.6, -0.4), slope(0.4, 0.6), "reversed"),
        (slope(-0.5, 0.5), slope(0.6, 1.4), "not clear"),
        (slope(-0.1, 0.1), slope(-0.1, 0.4), "not clear"),
        (Measured(value=0.0), Measured(value=1.0), "not clear"),
    ],
)
def test_intervals_decide_whether_a_latent_was_added(base: Measured, tuned: Measured, said: str) -> None:
    latents = taught().latents
    assert latents
    assert learned.relation(latents[0].model_copy(update={"in_base": base, "in_tuned": tuned})) == said
