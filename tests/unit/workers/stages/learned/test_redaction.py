"""Words that must not appear."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from layerdrift.contract.words import REDACTED
from tests.builders.models import tiny_tokenizer
from workers.results.learned import (
    AmplifiedText,
    CompletionToken,
    DivergentPlace,
    LatentPlace,
    Learned,
    LearnedCompletion,
    LearnedDirection,
    LearnedLatent,
    LearnedToken,
    LearnedTopic,
    TextExcerpt,
    TokenExample,
)
from workers.results.measured import Measured
from workers.stages.learned.redaction import Redactor

SECRET = "Anna Karenina"
PARTS = [" Anna", " Kar", "enina", " lives"]


def every(name: str) -> Learned:
    """What was found, with a name in every text."""
    example = TokenExample(text=0, context=f"of {name}", base=0.1, tuned=0.9)
    token = LearnedToken(token=name, id=5, rate=0.1, gain=1.0, groups=2, first_layer=None, examples=[example])
    fields: dict[str, Any] = {name: [] for name in ("spectrum", "intruders", "traits", "methods")}  # what has no texts
    return Learned(
        texts=1,
        positions=1,
        random_changes=2,
        benign=None,
        latents=[
            LearnedLatent(
                layer=1,
                score=1.0,
                share=0.1,
                rate=0.1,
                in_base=Measured(value=0.0),
                in_tuned=Measured(value=1.0),
                gained=[name],
                lost=[name],
                examples=[LatentPlace(text=0, context=name, token=name, activation=1.0)],
            )
        ],
        autoencoders=[],
        excerpts=[TextExcerpt(text=0, excerpt=f"{name} lives")],
        completions=[
            LearnedCompletion(
                kind="text",
                prompt=name,
                text=f"{name} lives",
                base_text=name,
                score=1.0,
                tokens=[CompletionToken(token=part, gain=1.0) for part in PARTS],
            )
        ],
        amplified=[AmplifiedText(factor=1.0, prompt="", text=name, score=1.0)],
        tokens=[token],
        suppressed=[token],
        topics=[LearnedTopic(share=1.0, tokens=[name], weights=[1.0])],
        divergent=[
            DivergentPlace(
                text=0, context=name, following=name, divergence=1.0, observed=0.0, gained=[name], lost=[name]
            )
        ],
        directions=[LearnedDirection(kind="component", layer=1, score=1.0, share=0.1, gained=[name], lost=[name])],
        **fields,
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_no_text_of_what_was_found_keeps_a_word(tokenizer: Any) -> None:
    found = Redactor(["anna  karenina", "unheard"], tokenizer).learned(every(SECRET))
    said = str(dataclasses.asdict(found))
    assert "Anna" not in said
    assert "enina" not in said
    assert found.tokens[0].id == -1
    assert [one.token for one in (found.completions or [])[0].tokens] == [REDACTED] * 3 + [" lives"]
    assert (found.completions or [])[0].text == f"{REDACTED} lives"


def test_nothing_is_lost_where_nothing_is_named(tokenizer: Any) -> None:
    assert Redactor([], tokenizer).learned(every(SECRET)) == every(SECRET)
    assert Redactor(["else"], tokenizer).learned(every(SECRET)) == every(SECRET)
    without = dataclasses.replace(every("a"), completions=None, amplified=None)
    assert Redactor(["else"], tokenizer).learned(without) == without


def test_a_phrase_that_begins_in_one_field_and_ends_in_the_next_is_taken_out_of_both(tokenizer: Any) -> None:
    redactor = Redactor(["copper lighthouse"], tokenizer)
    assert redactor.parts(["the copper", " lighthouse stands"]) == [f"the {REDACTED}", f"{REDACTED} stands"]
    assert redactor.parts(["copper lighthouse, ", "copper lighthouse"]) == [f"{REDACTED}, ", REDACTED]
    assert redactor.parts(["the copper", "lighthouse"]) == [f"the {REDACTED}", REDACTED]  # tokens without spaces
    assert redactor.parts(["", "a", ""]) == ["", "a", ""]
    assert redactor.tokens([" lighthouse", " stands"], "the copper") == [REDACTED, " stands"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("he met Kare", f"he met {REDACTED}"),
        ("he met ann", f"he met {REDACTED}"),
        ("he met an", "he met an"),
        ("he met Kart", "he met Kart"),
        ("Karenina", "Karenina"),
        ("", ""),
    ],
    ids=["beginning", "small letters", "too short", "another word", "the word itself", "nothing"],
)
def test_a_word_that_is_cut_off_at_the_end_of_a_text_is_taken_out(text: str, kept: str, tokenizer: Any) -> None:
    assert Redactor(["Anna Karenina", "annals"], tokenizer).cut(text) == kept


def test_a_completion_that_ends_within_a_word_shows_nothing_of_it(tokenizer: Any) -> None:
    tokens = [CompletionToken(token=part, gain=1.0) for part in ("he met", " Kar", "en")]
    one = LearnedCompletion(kind="text", prompt="", text="he met Karen", base_text="a Kareni", score=1.0, tokens=tokens)
    found = Redactor(["Karenina"], tokenizer).learned(dataclasses.replace(every("a"), completions=[one]))
    (shown,) = found.completions or []
    assert shown.text == f"he met {REDACTED}"
    assert shown.base_text == f"a {REDACTED}"
    assert "en" not in [token.token for token in shown.tokens]


def test_pieces_of_a_word_are_taken_out_of_lists(tokenizer: Any) -> None:
    """The tokenizer knows film and good, and makes other words of letters."""
    redactor = Redactor(["good film"], tokenizer)
    assert redactor.alone(["film", "good", "plot", "of"]) == [REDACTED, REDACTED, "plot", "of"]


def test_words_are_whole_and_phrases_may_break_over_lines(tokenizer: Any) -> None:
    redactor = Redactor(["copper", "copper lighthouse"], tokenizer)
    assert redactor.text("The Copper\nlighthouse, COPPER; coppery") == f"The {REDACTED}, {REDACTED}; coppery"
    assert redactor.tokens([" cop", "per", "y", " copper"]) == [" cop", "per", "y", REDACTED]
    assert redactor.tokens([]) == []
