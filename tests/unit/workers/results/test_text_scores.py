"""Scores of texts as a file, and hashes that name a text wherever it stands."""

from __future__ import annotations

from backends.tables.rows import Row
from workers.results.text_scores import TextScores, hashes


def test_scores_survive_being_stored() -> None:
    made = TextScores(name="perplexity", texts=("a", "b"), units=(0, 0), sums=(1.5, 2.0), counts=(3.0, 4.0))
    assert TextScores.read(made.parquet()) == made


def test_a_hash_is_of_text_pair_and_label_alone() -> None:
    row = Row(text="a", label="1")
    others = [Row(text="a", label="2"), Row(text="a", label="1", pair="b"), Row(text="b", label="1"), Row("a1", None)]
    assert hashes([row]) == hashes([row._replace(group="g")])
    assert len({*hashes([row, *others])}) == 5
