"""From a study to the analyses of its members, and where errors point."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import MAX_MEMBERS, StudyRequest
from tests.builders.studies import study_request

TUNED = {"uri": "file:///tuned"}
DATA = {"uri": "s3://data/other.csv"}


def member(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {"name": name, "tuned": TUNED, "dataset": DATA} | changes


def test_a_member_is_the_analysis_that_it_would_be_alone() -> None:
    asked = study_request(tags={"team": "search"}, analysis={"sae": None}, seed=3)
    alone = AnalysisRequest.model_validate(
        {
            "name": "spam-1",
            "tags": {"team": "search"},
            "base": {"uri": "file:///base"},
            "finetune": {},
            "dataset": {"uri": "s3://data/spam.csv"},
            "analysis": {"sae": None},
            "seed": 1,
        }
    )
    assert asked.analyses()[-1].request == alone


def test_what_a_member_leaves_out_is_the_studys() -> None:
    asked = study_request(dataset=DATA, seed=5, members=[{"name": "a"}, {"name": "b", "finetune": {"epochs": 9}}])
    first, second = (one.request for one in asked.analyses())
    assert (first.seed, first.dataset.uri) == (5, DATA["uri"])
    assert (first.finetune and first.finetune.epochs, second.finetune and second.finetune.epochs) == (3, 9)


def test_a_tuned_checkpoint_does_not_take_the_studys_fine_tune() -> None:
    asked = study_request(members=[member(), {"name": "b", "dataset": DATA}])
    assert [one.request.finetune is None for one in asked.analyses()] == [True, False]


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"members": [member("a"), member("a", tuned={"uri": "file:///c"})]}, ["/members/1/name"]),
        ({"members": [member("a"), member("b")]}, ["/members/1"]),
        ({"members": [member("a"), {"name": "b", "tuned": {"uri": "file:///b"}}]}, ["/members/1"]),
        ({"finetune": None, "members": [member("a"), {"name": "b", "dataset": DATA}]}, ["/members/1"]),
        (
            {
                "members": [
                    member(name, tuned={"uri": f"s3://m/{name}"}, snapshot={"run": "r", "step": 5}) for name in "ab"
                ]
            },
            ["/members/1/snapshot"],
        ),
        (
            {"analysis": {"noise_floors": ["reseed"]}, "members": [member("a"), {"name": "b", "dataset": DATA}]},
            ["/members/0"],
        ),
        (
            {
                "policy": {
                    "rules": [{"id": "a", "path": "layers[0].drift", "max": 1, "of_baseline": "ratio", "message": "m"}]
                }
            },
            ["/policy"],
        ),
    ],
)
def test_members_that_cannot_be_are_named_by_their_place(changes: dict[str, Any], pointers: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        study_request(**changes).analyses()
    assert [one.pointer for one in raised.value.errors] == pointers


@pytest.mark.parametrize(
    ("members", "place"),
    [
        ([member()], ("members",)),
        ([member(str(number)) for number in range(MAX_MEMBERS + 1)], ("members",)),
        ([member(finetune={}), member("b")], ("members", 0)),
        ([member(snapshot={"run": "r", "step": 1}, tuned=None), member("b")], ("members", 0)),
        ([member(seed=-1), member("b")], ("members", 0, "seed")),
    ],
)
def test_what_no_study_can_be_is_refused(members: list[dict[str, Any]], place: tuple[int | str, ...]) -> None:
    with pytest.raises(ValidationError) as raised:
        study_request(members=members)
    assert [error["loc"] for error in raised.value.errors()] == [place]


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        ("/base/uri", "/base/uri"),
        ("/analysis/sae/layers", "/analysis/sae/layers"),
        ("/dataset/uri", "/dataset/uri"),
        ("/finetune/lora", "/finetune/lora"),
        ("/tuned/uri", "/members/0/tuned/uri"),
        ("", "/members/0"),
    ],
)
def test_an_error_of_an_analysis_points_to_where_the_study_says_it(pointer: str, expected: str) -> None:
    first = member() if pointer.startswith("/tuned") else {"name": "a"}
    asked = study_request(dataset=DATA, members=[first, {"name": "b", "dataset": DATA}])
    assert asked.pointer(0, pointer) == expected
    if pointer.startswith("/dataset"):
        assert asked.pointer(1, pointer) == "/members/1/dataset/uri"


def test_a_study_survives_being_stored() -> None:
    asked = study_request()
    assert StudyRequest.model_validate_json(asked.model_dump_json()) == asked
