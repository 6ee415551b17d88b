from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from backends.deployment import Deployment
from backends.settings import Settings
from layerdrift.contract.errors import LayerdriftError, NotFoundError, UnsupportedError
from layerdrift.contract.inspection import Inspection, InspectionRequest
from service.use_cases.inspect import Inspections

GOOD, BAD = "an_" + "a" * 26, "an_" + "b" * 26


class Asked(NamedTuple):
    tenant: str
    analysis_id: str
    texts: list[str]
    completion_tokens: int


class Inspector:
    """Stands for the one that holds models: knows one analysis."""

    made: list[Inspector] = []  # noqa: RUF012 - emptied for each test

    def __init__(self, deployment: Deployment, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.asked: list[Asked] = []
        self.made.append(self)

    def answer(self, asked: Sequence[Asked]) -> list[Inspection | LayerdriftError]:
        self.asked += asked
        return [
            Inspection(analysis_id=GOOD, texts=[]) if one.analysis_id == GOOD else NotFoundError("it is not there")
            for one in asked
        ]


@pytest.fixture
def inspectors(monkeypatch: pytest.MonkeyPatch) -> list[Inspector]:
    """Those that were made, in place of the real one, which loads torch."""
    monkeypatch.setattr(Inspector, "made", [])
    stand_in = SimpleNamespace(Asked=Asked, Inspector=Inspector)
    monkeypatch.setitem(sys.modules, "workers.inspector", stand_in)
    return Inspector.made


def question(tenant: str, analysis_id: str) -> tuple[str, InspectionRequest]:
    return tenant, InspectionRequest(analysis_id=analysis_id, texts=["a text"])


def test_answers_come_in_order_and_an_error_reaches_no_other(inspectors: list[Inspector], tmp_path: Path) -> None:
    inspections = Inspections(Settings(home=tmp_path))
    questions = [question("ours", GOOD), question("theirs", BAD), question("ours", GOOD)]
    answers = inspections.answer(questions)
    assert [type(one) for one in answers] == [Inspection, NotFoundError, Inspection]
    assert inspectors[0].asked[:2] == [("ours", GOOD, ["a text"], 24), ("theirs", BAD, ["a text"], 24)]


def test_one_inspector_with_the_memory_of_the_settings_answers_all(inspectors: list[Inspector], tmp_path: Path) -> None:
    inspections = Inspections(Settings(home=tmp_path, inspect_memory_bytes=2**21))
    for _ in range(3):
        inspections.answer([question("ours", GOOD)])
    (only,) = inspectors
    assert (only.folder, only.limit, len(only.asked)) == (tmp_path.resolve() / "inspect", 2**21, 3)


def test_without_torch_it_says_what_to_install_and_loads_nothing(
    inspectors: list[Inspector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnsupportedError, match=r"install layerdrift-server\[worker\]"):
        Inspections(Settings()).answer([question("ours", GOOD)])
    assert inspectors == []
