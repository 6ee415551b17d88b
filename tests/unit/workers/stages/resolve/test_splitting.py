"""Rows split by use. Further tests of whole data sets: tests/stages/test_whole_comparison.py and test_groups.py."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.tables.chats import Chat, Turn
from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import MIN_EXAMPLES
from tests.builders.stages import request, tuning
from workers.stages.common.inputs import Split
from workers.stages.resolve.splitting import HELD_OUT, MIN_HELD_OUT, distinct, identity, split_rows, units_of


def rows(count: int, group_size: int = 0) -> list[Row]:
    """Numbered rows with two labels; so many neighbours are a group."""
    return [
        Row(f"text {number}", str(number % 2), None, str(number // group_size) if group_size else None)
        for number in range(count)
    ]


def parts(split: Split) -> list[list[Row]]:
    return [split.analysed, split.train, split.held_out, split.spare]


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000"])
def test_blank_texts_are_left_out_and_counted(blank: str) -> None:
    usable, (warning,) = distinct([Row("a", None), Row(blank, None)])
    assert usable == [Row("a", None)]
    assert (warning.code, warning.message) == ("blank_texts", "1 of 2 rows have a blank text and were skipped")


def test_of_equal_texts_the_first_stays_with_its_label() -> None:
    usable, (warning,) = distinct([Row("a", "1"), Row(" a\n", "2"), Row("A", "3")])
    assert usable == [Row("a", "1"), Row("A", "3")]
    assert warning.code == "repeated_texts"


def test_no_rows_are_distinct() -> None:
    assert distinct([]) == ([], [])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Row("a", "1", None, "g"), Row(" a ", "2", None, "h"), True),
        (Row("a", None), Row("a", None, ""), False),
        (Row("a", None, "b"), Row("a", None, " b"), True),
        (Row("a", None, "b"), Row("b", None, "a"), False),
    ],
    ids=["labels and groups do not count", "a pair is no single text", "spaces do not count", "order counts"],
)
def test_two_rows_are_the_same_text_or_not(one: Row, other: Row, same: bool) -> None:
    assert (identity(one) == identity(other)) is same


def test_preferences_that_differ_in_the_rejected_answer_alone_stay_together() -> None:
    asked, right = Turn("user", "q"), Turn("assistant", "a")

    def row(wrong: str, group: str | None = None) -> Row:
        return Row("q a", None, None, group, Chat((asked, right), 1, ((Turn("assistant", wrong),),)))

    usable, warnings = distinct([row("b"), row("c"), row("b"), Row("other", None), row("d", "g")])
    assert [one.group for one in usable] == ["q a", "q a", None, "g"]
    assert [warning.message for warning in warnings] == [
        "1 of 5 rows repeat the text of an earlier row and were skipped"
    ]


def test_units_are_numbered_as_they_come_and_rows_without_a_group_are_alone() -> None:
    given_rows = [Row("a", None, None, group) for group in ("x", None, "y", "x", None, "y")]
    assert units_of(given_rows) == (0, 1, 2, 0, 3, 2)
    assert units_of(rows(3)) is None
    assert units_of([]) is None


@given(st.integers(2 * MIN_EXAMPLES, 260), st.integers(0, 9), st.integers(0, 3), st.booleans())
def test_every_row_has_one_use_and_no_group_has_two(count: int, group_size: int, seed: int, tuned: bool) -> None:
    dataset = {"uri": "file:///x.csv", "max_examples": 30}
    asked = (tuning() if tuned else request()).model_copy(
        update={"seed": seed, "dataset": request(dataset=dataset).dataset}
    )
    split = split_rows(rows(count, group_size), asked)
    assert Counter(row for part in parts(split) for row in part) == Counter(rows(count, group_size))
    if not tuned:
        assert 30 <= len(split.analysed) < 30 + max(1, group_size)
    if group_size:
        of_parts = [{row.group for row in part} for part in parts(split)]
        assert sum(map(len, of_parts)) == len(set.union(*of_parts))


def test_without_a_fine_tune_what_is_not_analysed_is_spare() -> None:
    split = split_rows(rows(50), request(dataset={"uri": "file:///x.csv", "max_examples": 20}))
    assert [len(part) for part in parts(split)] == [20, 0, 0, 30]


@pytest.mark.parametrize(
    ("count", "train", "keep", "sizes"),
    [
        (40, None, "last", [20, 20, 0, 0]),
        (40, None, "best", [20, 18, 2, 0]),
        (100, None, "last", [30, 70, 0, 0]),
        (100, 20, "last", [30, 20, 0, 50]),
        (100, 20, "best", [30, 20, MIN_HELD_OUT, 0]),
        (99, 20, "best", [29, 20, MIN_HELD_OUT, 0]),
        (98, 20, "best", [29, 18, 2, 49]),
        (500, 50, "best", [150, 50, 75, 225]),
        (10_000, None, "best", [2000, 7500, HELD_OUT, 0]),
    ],
)
def test_rows_are_dealt_out_in_these_shares(count: int, train: int | None, keep: str, sizes: list[int]) -> None:
    split = split_rows(rows(count), tuning(train_examples=train, keep=keep))
    assert [len(part) for part in parts(split)] == sizes


def test_another_seed_gives_other_rows_and_the_same_seed_the_same() -> None:
    splits = [
        split_rows(rows(100), request(seed=seed, dataset={"uri": "file:///x", "max_examples": 20}))
        for seed in (0, 0, 1)
    ]
    assert splits[0] == splits[1]
    assert set(splits[0].analysed) != set(splits[2].analysed)


def test_fewer_than_ten_training_rows_hold_nothing_out() -> None:
    split = split_rows(rows(60), tuning(train_examples=9))
    assert [len(part) for part in parts(split)] == [20, 9, 0, 31]


def test_training_rows_that_are_asked_for_are_never_fewer_because_of_a_group() -> None:
    split = split_rows(rows(100, 7), tuning(train_examples=20, keep="last"))
    assert len(split.train) >= 20


def test_the_last_group_is_held_out_whole_where_it_is_larger_than_what_is_wanted() -> None:
    """Of about 40 training rows a tenth is to be held out; groups have ten."""
    split = split_rows(rows(60, 10), tuning())
    assert len(split.held_out) == 10
    assert len({row.group for row in split.held_out}) == 1


@pytest.mark.parametrize(
    ("given_rows", "message", "pointer"),
    [
        (rows(2 * MIN_EXAMPLES - 1), "has 39 usable rows; at least 40", "/dataset"),
        ([row._replace(label="") for row in rows(40)], "some rows have an empty label", "/dataset/label_column"),
        ([row._replace(label=None) for row in rows(40)], "some rows have an empty label", "/dataset/label_column"),
        ([row._replace(label="x") for row in rows(40)], "have the label 'x'", "/dataset/label_column"),
        (rows(40, 40), "no row is left to train on", "/dataset/group_column"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_where_the_request_can_be_changed(
    given_rows: list[Row], message: str, pointer: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        split_rows(given_rows, tuning())
    assert [one.pointer for one in raised.value.errors] == [pointer]
