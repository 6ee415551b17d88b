"""What version 0.1 left in a bucket: its records are read and gone on with, its report is shown, judged and compared.

`version_0_1/` was written by that version (commit 1f00197) for the tiny models of the builders: an analysis that is
finished, one that waits, and one that was cancelled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from layerdrift.contract.analysis import Status
from layerdrift.contract.report import SCHEMA_VERSION, Report
from layerdrift.policies import starter_decision
from layerdrift.render import html, markdown
from tests.builders.models import add_noise, save_model, tiny_bert
from workers.job import run_job

KEPT = Path(__file__).parent / "version_0_1"
DONE, WAITING, CANCELLED = (
    "an_cvpvcvaagcu5z5kt6w2fgjkrke",
    "an_edhrugy2gabj2lat5ktikdzk3z",
    "an_rhaaq7lxuqpdp3nswrbonb3ll2",
)


def stored() -> dict[str, str]:
    return {str(file.relative_to(KEPT)): file.read_text() for file in sorted(KEPT.rglob("*")) if file.is_file()}


@pytest.fixture
def earlier(deployment: Deployment, valkey: redis.Redis, roots: Path) -> Iterator[Deployment]:
    """A deployment on that bucket, with an empty Redis and the models where the requests say."""
    deployment.blobs.delete_all("")
    folder = roots / "models"
    for key, text in stored().items():
        deployment.blobs.put(key, text.replace("file:///models", folder.as_uri()).encode(), "")
    changed = tiny_bert(0)
    add_noise(changed, block=2)
    for name, model in (("base", tiny_bert(0)), ("tuned", changed)):
        save_model(model, folder / name)
        for file in json.loads(stored()[key_of(WAITING)])["pins"][name]["files"]:
            time = int(file["version"].removeprefix("mtime:"))
            os.utime(folder / name / file["name"], ns=(time, time))
    valkey.flushdb()
    yield deployment
    deployment.blobs.delete_all("")


def key_of(id_: str) -> str:
    return f"tenants/default/jobs/{id_}.json"


def report_of(deployment: Deployment, job: JobRecord) -> Report:
    return Report.model_validate_json(deployment.reports.get(job.owned, "json").body)


def test_its_records_are_listed_as_they_were_left(earlier: Deployment) -> None:
    assert earlier.jobs.restore() == 3
    found = {id_: earlier.jobs.get(id_) for id_ in (DONE, WAITING, CANCELLED)}
    assert {id_: job.status for id_, job in found.items()} == {
        DONE: Status.SUCCEEDED,
        WAITING: Status.QUEUED,
        CANCELLED: Status.CANCELLED,
    }
    assert found[DONE].analysis().name == "pair"
    assert found[DONE].request.tags == {"team": "search"}
    assert found[DONE].engine == "0.1.0"
    assert found[DONE].request.analysis.noise_floors == ["numerical"]  # `nulls` of version 0.1
    assert earlier.jobs.open_ids() == [WAITING]


@pytest.mark.parametrize("id_", [DONE, WAITING, CANCELLED])
def test_writing_a_record_again_loses_nothing_of_it(earlier: Deployment, id_: str) -> None:
    before = json.loads(earlier.blobs.get(key_of(id_)))
    earlier.jobs.restore()
    earlier.jobs.update(id_, lambda job: job.model_copy(update={"attempts": job.attempts + 1}))
    after = json.loads(earlier.jobs.get(id_).model_dump_json())
    assert after.pop("attempts") == before.pop("attempts") + 1
    lost = [path for path in leaves(before) if path not in set(leaves(after))]
    renamed = [path for path in lost if path[-1] in ("numerical", "transfer", "warm_start", "match")]
    assert [path for path in lost if path not in renamed] == []
    assert {path[:3] for path in renamed} <= {("request", "analysis", "nulls"), ("request", "analysis", "sae")}


def leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value of a document with the way to it."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield from leaves(value, (*path, name))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from leaves(value, (*path, number))
    elif document is not None:
        yield (*path, document)


def test_a_job_that_it_queued_is_run_by_this_version(earlier: Deployment) -> None:
    earlier.jobs.restore()
    run_job(earlier, WAITING)
    found = earlier.jobs.get(WAITING)
    assert (found.status, found.error) == (Status.SUCCEEDED, None)
    assert report_of(earlier, found).schema_version == SCHEMA_VERSION


def test_its_report_is_shown_and_judged_as_one_of_today(earlier: Deployment) -> None:
    earlier.jobs.restore()
    found = report_of(earlier, earlier.jobs.get(DONE))
    assert (found.schema_version, found.status) == (SCHEMA_VERSION, "complete")
    raw = json.loads(stored()[f"tenants/default/reports/{DONE}/report.json"])
    assert [layer.drift for layer in found.layers] == [layer["drift"] for layer in raw["layers"]]
    assert "layer 3" in markdown.render(found).lower()
    assert "</html>" in html.render(found)
    assert starter_decision(found) in ("pass", "warn", "fail")
