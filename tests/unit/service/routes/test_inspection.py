from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import cast

import pytest

from backends.settings import Settings
from layerdrift.contract.errors import LayerdriftError
from layerdrift.contract.inspection import Inspection, InspectionRequest
from service.routes.inspection import InspectAPI, Question
from service.use_cases.inspect import Inspections
from workers.inspector import Asked, Inspector

GOOD, BAD = "an_" + "a" * 26, "an_" + "b" * 26


class Fragile:
    """An inspector that breaks where a batch has one of its kind."""

    def answer(self, asked: Sequence[Asked]) -> list[Inspection | LayerdriftError]:
        if any(one.analysis_id == BAD for one in asked):
            raise MemoryError("secret detail")
        return [Inspection(analysis_id=one.analysis_id, texts=[]) for one in asked]


def questions(*ids: str) -> list[Question]:
    return [Question(tenant="default", request=InspectionRequest(analysis_id=id_, texts=["x"])) for id_ in ids]


@pytest.fixture
def api() -> InspectAPI:
    made = InspectAPI(Settings())
    made._inspections = Inspections(Settings())
    made._inspections._inspector = cast(Inspector, Fragile())
    return made


def test_one_that_breaks_a_batch_fails_alone(api: InspectAPI) -> None:
    answers = api.predict(questions(GOOD, BAD, GOOD))
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert b"secret" not in bytes(answers[1].body)


def test_without_torch_it_says_what_to_install(api: InspectAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (answer,) = api.predict(questions(GOOD))
    assert answer.status_code == 501
    assert b"install layerdrift-server[worker]" in bytes(answer.body)
