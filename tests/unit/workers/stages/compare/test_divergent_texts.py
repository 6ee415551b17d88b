"""The texts on which two models' answers differ most."""

from __future__ import annotations

import torch

from backends.tables.reading import Row
from workers.results.outputs import DivergentText
from workers.stages.common.evaluation import Predicted, Scores
from workers.stages.compare.divergent_texts import CHARACTERS, LEAST_BITS, SHOWN, TopAnswers, divergent_texts

NAMES = ["no", "yes"]


def predicted(*shares: float) -> Predicted:
    """Of the second class, text by text."""
    probabilities = torch.tensor([[1 - share, share] for share in shares])
    return Predicted(probabilities.log(), torch.full((len(shares),), -1), torch.arange(len(shares)))


def scores(*bits: float) -> Scores:
    return Scores(torch.tensor(bits, dtype=torch.float64), torch.ones(len(bits), dtype=torch.float64))


def test_texts_come_with_both_answers_and_the_label_and_small_differences_are_left_out() -> None:
    answers = TopAnswers(3)
    answers.add("base", predicted(0.1, 0.9, 0.2))
    answers.add("tuned", predicted(0.8, 0.9, 0.2))
    rows = [Row("a", "yes"), Row("b", None), Row("c", "no")]
    (found,) = divergent_texts(rows, scores(0.4, LEAST_BITS / 2, 0.0), answers, NAMES)
    assert (found.text, found.shown, found.label) == (0, "a", "yes")
    assert found.base is not None
    assert found.tuned is not None
    assert (found.base.label, round(found.base.probability, 3)) == ("no", 0.9)
    assert (found.tuned.label, round(found.tuned.probability, 3)) == ("yes", 0.8)


def test_of_many_the_first_are_told_most_first_and_long_texts_are_cut() -> None:
    rows = [Row("x" * 400, None, "second")] * 30
    bits = scores(*(0.02 * number for number in range(30)))
    found = divergent_texts(rows, bits, None, [])
    assert len(found) == SHOWN
    assert [one.text for one in found[:3]] == [29, 28, 27]
    assert found[0] == DivergentText(
        text=29, shown="x" * CHARACTERS + " …", divergence=0.58, base=None, tuned=None, label=None
    )


def test_the_mean_is_over_the_masked_tokens_of_a_text() -> None:
    sums = Scores(torch.tensor([3.0, 0.0]).double(), torch.tensor([6.0, 0.0]).double())
    (found,) = divergent_texts([Row("a", None), Row("b", None)], sums, None, [])
    assert found.divergence == 0.5


def test_answers_of_several_batches_are_told_apart() -> None:
    answers = TopAnswers(4)
    first = predicted(0.6, 0.3)
    answers.add("base", first._replace(texts=torch.tensor([2, 0])))
    assert [answers.told("base", text, NAMES).label for text in (2, 0)] == ["yes", "no"]
