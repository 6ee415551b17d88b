from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdrift.contract.paths import Path, PathError
from layerdrift.contract.report import Report
from tests.builders.reports import report


def values(path: str) -> list[object]:
    return [match.value for match in Path.parse(path).matches(report())]


def test_brackets_choose_as_in_python() -> None:
    whole = values("layers[*].drift")
    assert len(whole) == 4
    assert values("layers[1].drift") == whole[1:2]
    assert values("layers[-1].drift") == whole[-1:]
    assert values("layers[1:3].drift") == whole[1:3]
    assert values("layers[::-1].drift") == whole[::-1]
    assert values("layers[9].drift") == []


def test_a_filter_takes_the_entries_whose_field_has_the_value() -> None:
    named = Path.parse("layers[zone=general].index").matches(report())
    assert named
    assert all(report().layers[int(str(match.value))].zone == "general" for match in named)


def test_a_list_can_be_counted_whole_or_in_part() -> None:
    assert values("layers.length") == [4]
    assert values("layers[1:].length") == [3]
    assert values("layers[zone=general].length") == [len(values("layers[zone=general].index"))]


def test_every_match_has_the_path_that_leads_to_it_alone() -> None:
    for match in Path.parse("layers[*].similarity.token.cka.value").matches(report()):
        (again,) = Path.parse(match.path).matches(report())
        assert again == match


def test_a_part_that_was_not_computed_is_a_match_without_a_value() -> None:
    bare = report().model_copy(update={"finetune": None})
    (match,) = Path.parse("finetune.steps").matches(bare)
    assert match.value is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the path is empty"),
        ("[0].drift", "starts with brackets"),
        ("layers[x].drift", "not a number, a slice"),
        ("layers[::0].drift", "step of a slice cannot be 0"),
        ("layers..drift", "not a valid path"),
        ("layers[0]drift", "not a valid path"),
    ],
)
def test_what_is_no_path_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(PathError) as raised:
        Path.parse(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers[*].drifd", "did you mean drift"),
        ("layers.drift", "select entries with brackets"),
        ("layers", "is a list"),
        ("layers[0].similarity", "is not a single value"),
        ("layers[zone=genral].drift", "did you mean general"),
        ("recommendation.basis.x", "nothing inside"),
    ],
)
def test_what_no_report_can_have_is_refused_before_there_is_one(text: str, message: str) -> None:
    with pytest.raises(PathError) as raised:
        Path.parse(text).check(Report)
    assert message in str(raised.value)


def test_only_numbers_can_be_held_against_limits() -> None:
    assert Path.parse("layers[0].drift").check(Report)
    assert not Path.parse("layers[0].zone").check(Report)
    assert Path.parse("layers[*].length").check(Report)


@given(st.text(alphabet="layers.[]0:*=-x ", max_size=20) | st.text(max_size=40))
def test_any_text_is_a_path_or_an_error_that_says_so(text: str) -> None:
    try:
        parsed = Path.parse(text)
        parsed.check(Report)
    except PathError:
        return
    parsed.matches(report())
    assert parsed.text == text
    assert parsed.single in (True, False)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers[0:2].drift", {"layers[0].drift": 0.0, "layers[1].drift": pytest.approx(1 / 3)}),
        ("layers[-1].drift", {"layers[3].drift": 1.0}),
        ("layers[*].index", {f"layers[{index}].index": index for index in range(4)}),
        ("layers[::2].index", {"layers[0].index": 0, "layers[2].index": 2}),
        ("layers[zone=general].drifted", {"layers[0].drifted": False, "layers[1].drifted": True}),
        ("layers[drifted=true].length", {"layers[drifted=true].length": 3}),
        ("layers.length", {"layers.length": 4}),
        ("layers[1].similarity.token.cka.low", {"layers[1].similarity.token.cka.low": pytest.approx(2 / 3 - 0.01)}),
        ("layers[0].similarity.cls.cka.value", {"layers[0].similarity.cls.cka.value": None}),
        ("layers[0].weights.attention.relative_frobenius", {"layers[0].weights.attention.relative_frobenius": None}),
        ("warnings[code=no_intervals].length", {"warnings[code=no_intervals].length": 0}),
        ("models.base.blocks", {"models.base.blocks": 3}),
        ("outputs.tuned.accuracy.value", {"outputs.tuned.accuracy.value": None}),
        ("layers[9].drift", {}),
    ],
)
def test_a_path_leads_to_every_number_that_it_names(path: str, expected: dict[str, Any]) -> None:
    headless = report(outputs=None)
    Path.parse(path).check(Report)
    assert {match.path: match.value for match in Path.parse(path).matches(headless)} == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("layers[0].drfit", "did you mean drift?"),
        ("layers[0].similarity.tokens.cka.value", "did you mean token?"),
        ("layer[0].drift", "did you mean layers?"),
        ("layers[0].similarity.token.cka", "continue with one of high, low, noise_floor, undefined, value"),
        ("layers.drift", "layers is a list; select entries with brackets: layers[*].drift"),
        ("layers", "layers is a list; select entries with brackets, or count them with .length"),
        ("layers[zon=general].drift", "does not exist"),
        ("layers[zone=specialized].length", "did you mean specialised?"),
        ("warnings[code=identical_model].length", "did you mean identical_models?"),
        ("layers[drifted=yes].length", "possible: false, true"),
        ("layers[0].length", "does not exist"),
        ("outputs.length", "does not exist"),
        ("name.length", "does not exist"),
        ("layers[*].drift.length", "does not exist"),
        ("layers[a].drift", "[a] is not a number, a slice, * or name=value"),
        ("layers[0]drift", "is not a valid path: 'drift' at column 10"),
        ("layers[0:3:0].drift", "step of a slice cannot be 0"),
        ("[0].drift", "starts with brackets"),
        ("layers..drift", "is not a valid path"),
        ("", "the path is empty"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_could_stand_there(path: str, message: str) -> None:
    with pytest.raises(PathError) as raised:
        Path.parse(path).check(Report)
    assert message in str(raised.value)
