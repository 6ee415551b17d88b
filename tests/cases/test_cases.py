"""Checkpoints and data as people have them, tiny, through the public entry. Adding a case is adding a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerdrift.sdk import Client
from tests.cases import good_inputs, of_a_kind, right_before, wrong_numbers
from tests.cases.case import Case, Ground
from tests.cases.document import CASES, PAGE, page


@pytest.fixture
def ground(request: pytest.FixtureRequest, roots: Path, client: Client) -> Ground:
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.callspec.id)
    folder = roots / "cases" / name
    folder.mkdir(parents=True)
    return Ground(folder, client)


def named(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=case.number) for case in cases]


@pytest.mark.parametrize("case", named(wrong_numbers.CASES))
def test_inputs_that_gave_a_wrong_number_give_the_right_one(case: Case, ground: Ground) -> None:
    case.check(case.asked(ground))


@pytest.mark.parametrize("case", named(good_inputs.CASES))
def test_good_inputs_are_read_or_refused_with_what_to_do(case: Case, ground: Ground) -> None:
    case.check(case.asked(ground))


@pytest.mark.slow
@pytest.mark.parametrize("case", named(of_a_kind.CASES))
def test_other_inputs_of_these_kinds_are_read_or_refused_alike(case: Case, ground: Ground) -> None:
    case.check(case.asked(ground))


@pytest.mark.slow
@pytest.mark.parametrize("case", named(right_before.CASES))
def test_what_was_right_before_is_right(case: Case, ground: Ground) -> None:
    case.check(case.asked(ground))


def test_the_page_on_compatibility_is_that_of_the_cases() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make compatibility writes it anew"


def test_no_two_cases_have_one_number() -> None:
    numbers = [case.number for case in CASES]
    assert len(numbers) == len(set(numbers))
