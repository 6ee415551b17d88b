"""Pairs kept in memory for inspection: the least recently used leave, and what is wrong with a request stays there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError
from layerdrift.contract.inspection import Inspection
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from tests.builders.jobs import submitted
from tests.builders.texts import make_texts
from workers.inspector import Asked, Inspector
from workers.job import run_job
from workers.stages.sae.token_latents import STRONGEST

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


def test_a_pair_beyond_the_memory_is_read_block_by_block_with_the_same_answer(
    deployment: Deployment, analysed: Callable[[], JobRecord], tmp_path: Path
) -> None:
    record, folder = analysed(), tmp_path / "inspect"
    whole = Inspector(deployment, folder, 2**30)
    (expected,) = whole.answer([asked(record)])
    size = next(iter(whole._pairs.values())).bytes
    small = Inspector(deployment, folder, size // 2)
    (found,) = small.answer([asked(record)])
    assert isinstance(found, Inspection), found
    assert found == expected
    assert small.kept == [record.id]
    assert [path.name for path in folder.iterdir()] == [record.id]  # its files stay while it is used
    assert next(iter(small._pairs.values())).bytes < size // 2
    assert small.answer([asked(record)]) == [expected]
    tiny = Inspector(deployment, tmp_path / "tiny", 100)
    (refused,) = tiny.answer([asked(record)])
    assert isinstance(refused, InputError)
    assert "LAYERDRIFT_INSPECT_MEMORY_BYTES allows" in refused.detail
    assert tiny.kept == []
    assert list((tmp_path / "tiny").iterdir()) == []


def test_the_report_tells_of_each_token_what_an_inspection_would(
    deployment: Deployment, base_folder: Path, noised_folder: Path, tmp_path: Path
) -> None:
    request = AnalysisRequest.model_validate(
        {
            "base": {"uri": base_folder.as_uri()},
            "tuned": {"uri": noised_folder.as_uri()},
            "dataset": {"inline": {"texts": make_texts(40)}},
            "analysis": {"sae": {"tokens": 10_000, "comparisons": ["transfer"]}, "grafts": False, "texts": TEXTS},
        }
    )
    record = submitted(deployment, request)
    run_job(deployment, record.id)
    report = Report.model_validate_json(deployment.reports.get(record.owned, "json").body)
    (inspection,) = Inspector(deployment, tmp_path / "inspect", 2**30).answer([asked(record)])
    assert isinstance(inspection, Inspection)
    for told, seen in zip(report.tokens.texts, inspection.texts, strict=True):
        assert told.tokens == seen.tokens
        assert told.latents is not None
        for layer, inspected in enumerate(seen.layers):
            for side, expected in (("base", inspected.base_latents), ("tuned", inspected.tuned_latents)):
                found = getattr(told.latents, side)[layer]
                assert expected is not None
                assert [[index for index, _ in token] for token in found] == [
                    [one.latent for one in token[:STRONGEST]] for token in expected
                ]
