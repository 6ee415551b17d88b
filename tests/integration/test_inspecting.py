"""Pairs kept in memory for inspection: the least recently used leave, and what is wrong with a request stays there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from layerdrift.backends.deployment import Deployment
from layerdrift.backends.records import JobRecord
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError
from layerdrift.contract.inspection import Inspection
from layerdrift.contract.request import AnalysisRequest
from tests.conftest import make_texts
from tests.integration.test_pipeline import submitted
from workers.inspecting import Asked, Inspector
from workers.pipeline import run_job

TEXTS = ["the good film", "bad"]


@pytest.fixture
def analysed(deployment: Deployment, base_folder: Path, noised_folder: Path) -> Callable[[], JobRecord]:
    def make() -> JobRecord:
        request = AnalysisRequest.model_validate(
            {
                "base": {"uri": base_folder.as_uri()},
                "tuned": {"uri": noised_folder.as_uri()},
                "dataset": {"inline": {"texts": make_texts(30)}},
                "analysis": {"sae": None, "grafts": False},
            }
        )
        made = submitted(deployment, request)
        run_job(deployment, made.id)
        return made

    return make


def asked(record: JobRecord, tenant: str = "default") -> Asked:
    return Asked(tenant, record.id, TEXTS)


def test_a_batch_answers_each_by_itself(
    deployment: Deployment, analysed: Callable[[], JobRecord], tmp_path: Path
) -> None:
    first, second, queued = analysed(), analysed(), analysed()
    deployment.jobs.update(queued.id, lambda _: queued)
    missing = Asked("default", "an_" + "a" * 26, TEXTS)
    inspector = Inspector(deployment, tmp_path / "inspect", 2**30)
    answers = inspector.answer(
        [asked(first), missing, asked(second), asked(first, "another"), asked(queued), asked(first)]
    )
    kinds = [type(answer) for answer in answers]
    assert kinds == [Inspection, NotFoundError, Inspection, NotFoundError, ConflictError, Inspection]
    assert answers[0] == answers[5]
    assert isinstance(answers[0], Inspection)
    assert isinstance(answers[2], Inspection)
    assert answers[0].analysis_id == first.id
    assert answers[0].texts == answers[2].texts
    assert [text.text for text in answers[0].texts] == TEXTS
    assert list((tmp_path / "inspect").iterdir()) == []


def test_the_least_recently_used_pair_leaves_the_memory(
    deployment: Deployment, analysed: Callable[[], JobRecord], tmp_path: Path
) -> None:
    one, two, three = analysed(), analysed(), analysed()
    sizing = Inspector(deployment, tmp_path / "inspect", 2**30)
    sizing.answer([asked(one)])
    size = next(iter(sizing._pairs.values())).bytes
    inspector = Inspector(deployment, tmp_path / "inspect", int(2.6 * size))
    for record in (one, two, one, three):
        assert isinstance(inspector.answer([asked(record)])[0], Inspection)
    assert inspector.kept == [one.id, three.id]
    small = Inspector(deployment, tmp_path / "inspect", size // 2)
    (refused,) = small.answer([asked(one)])
    assert isinstance(refused, InputError)
    assert "LAYERDRIFT_INSPECT_MEMORY_BYTES allows" in refused.detail
    assert small.kept == []
