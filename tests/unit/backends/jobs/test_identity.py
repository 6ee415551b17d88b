from __future__ import annotations

from typing import Any

import pytest

from backends.jobs import identity
from backends.jobs.identity import analysis_id
from backends.jobs.listing import ANALYSIS_ID
from backends.sources.locations import PinnedFile
from backends.sources.pinning import Pins
from layerdrift.contract.request import AnalysisRequest
from tests.builders.records import record

PINS = record().pins
BODY: dict[str, Any] = {
    "base": {"uri": "file:///a"},
    "tuned": {"uri": "file:///b"},
    "dataset": {"uri": "s3://d/x.csv"},
}


def id_of(changes: dict[str, Any] | None = None, tenant: str = "default", pins: Pins = PINS) -> str:
    return analysis_id(tenant, AnalysisRequest.model_validate(BODY | (changes or {})), pins)


def test_an_id_is_one_that_the_api_takes_as_an_id() -> None:
    assert ANALYSIS_ID.fullmatch(id_of())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": AnalysisRequest.model_validate(BODY).seed},
        {"tags": {}},
        {"webhook": {"url": "https://example.org/", "secret_ref": "ci"}},
        dict(reversed(BODY.items())),
    ],
    ids=["a default", "an empty field", "a webhook", "another order"],
)
def test_what_changes_no_answer_changes_no_id(changes: dict[str, Any]) -> None:
    assert id_of(changes) == id_of()


@pytest.mark.parametrize(
    "changes",
    [{"seed": 12_345}, {"tuned": {"uri": "file:///c"}}, {"dataset": {"uri": "s3://d/x.csv", "text_column": "body"}}],
)
def test_another_question_has_another_id(changes: dict[str, Any]) -> None:
    assert id_of(changes) != id_of()


def test_the_same_question_of_another_tenant_has_another_id() -> None:
    assert id_of(tenant="team") != id_of()


def test_files_that_have_changed_make_another_question() -> None:
    def with_version(version: str) -> Pins:
        file = PinnedFile(name="config.json", size=1, version=version)
        return PINS.model_copy(update={"base": PINS.base.model_copy(update={"files": [file]})})

    assert id_of(pins=with_version("mtime:1")) != id_of(pins=with_version("mtime:2"))
    assert id_of(pins=with_version("mtime:1")) == id_of(pins=with_version("mtime:1"))


def test_another_version_of_the_engine_gives_another_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = id_of()
    monkeypatch.setattr(identity, "__version__", "99.0.0")
    assert id_of() != before
