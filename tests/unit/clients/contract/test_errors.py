"""Errors: what they say can be sent and shown, and each becomes the problem document that the tree promises."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from layerdrift.contract import errors
from layerdrift.contract.errors import MAX_DETAIL_CHARACTERS, InputError, LayerdriftError, Problem, sayable

TREE = re.findall(r"^\+-- (\w+) +(\d{3})?", errors.__doc__ or "", re.MULTILINE)
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, LayerdriftError)]


def test_the_tree_at_the_top_of_the_file_has_every_branch() -> None:
    branches = {kind.__name__ for kind in KINDS if LayerdriftError in kind.__bases__}
    assert {name for name, _ in TREE} == branches


@pytest.mark.parametrize(("name", "status"), [(name, int(status)) for name, status in TREE if status])
def test_an_error_has_the_status_that_the_tree_says(name: str, status: int) -> None:
    assert vars(errors)[name].status == status


def test_each_kind_of_error_can_be_told_from_the_others() -> None:
    branches = [kind for kind in KINDS if kind is not errors.DeniedError]
    assert len({kind.kind for kind in branches}) == len(branches)
    assert errors.DeniedError.kind == errors.UnavailableError.kind
    assert len({kind.title for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_an_error_becomes_a_problem_document_that_is_one(kind: type[LayerdriftError]) -> None:
    error = kind("wait", 7) if issubclass(kind, errors.RateError) else kind("wait")
    body = json.loads(error.problem().model_dump_json())
    assert Problem.model_validate(body) == error.problem()
    assert (body["type"], body["status"], body["detail"]) == (f"urn:layerdrift:{kind.kind}", kind.status, "wait")


def test_an_error_at_one_place_points_there_in_its_document() -> None:
    problem = InputError.at("/dataset/uri", "no such file").problem()
    assert [(one.pointer, one.detail) for one in problem.errors] == [("/dataset/uri", "no such file")]
    assert problem.detail == "no such file"
    assert InputError("no such file").problem().errors == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a\x1b[2Jb\rc", "a\\x1b[2Jb\\rc"),
        ("one\ntwo", "one\ntwo"),
        ("half a pair \ud83d", "half a pair ?"),
        ("a\u202eb", "a\\u202eb"),
    ],
    ids=ascii,
)
def test_whatever_is_quoted_can_be_sent_and_shown(given: str, said: str) -> None:
    assert LayerdriftError(given).detail == said
    assert InputError.at("", given).errors[0].detail == said
    LayerdriftError(given).problem().model_dump_json().encode()


def test_a_message_has_an_end() -> None:
    whole = "x" * MAX_DETAIL_CHARACTERS
    assert sayable(whole) == whole
    assert sayable(f"{whole}y") == f"{whole}…"
    assert len(str(LayerdriftError("\x00" * MAX_DETAIL_CHARACTERS))) == MAX_DETAIL_CHARACTERS + 1


def test_fields_of_a_problem_that_are_not_known_are_passed_over() -> None:
    body = {"type": "about:blank", "title": "t", "status": 500, "detail": "d", "instance": "/x"}
    assert Problem.model_validate(body).detail == "d"
