"""Retention on a real bucket: what is old goes, and nothing that is in use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis

from backends import retention
from backends.deployment import Deployment
from backends.jobs.records import JobRecord, StudyRecord
from backends.settings import Retention
from backends.storage import key_names
from layerdrift.contract.analysis import Status
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.upload import UploadRequest
from tests.builders.records import record
from tests.builders.study_records import study_record
from workers.retention_sweep import RetentionSweep

TENANT = "default"


@pytest.fixture
def bucket(deployment: Deployment, valkey: redis.Redis) -> Iterator[Deployment]:
    deployment.blobs.delete_all("")
    yield deployment
    for one in deployment.blobs.unfinished():
        deployment.blobs.abort_parts(one.key, one.token)
    deployment.blobs.delete_all("")


def keeping(deployment: Deployment, **rules: float) -> Deployment:
    settings = deployment.settings.model_copy(update={"retention": Retention.model_validate(rules)})
    return replace(deployment, settings=settings)


def ended(deployment: Deployment, days: float, status: Status = Status.SUCCEEDED, **request: object) -> JobRecord:
    """An analysis that ended so long ago, with a report of 100 bytes, 1,000 of artifacts and 10,000 of a checkpoint."""
    fresh = record()
    made = fresh.model_copy(
        update={
            "status": status,
            "finished_at": datetime.now(UTC) - timedelta(days=days) if status.final else None,
            "request": AnalysisRequest.model_validate(fresh.request.model_dump() | request),
        }
    )
    deployment.jobs.submit(made)
    deployment.reports.put(made.owned, "json", b"r" * 100)
    deployment.blobs.put(key_names.artifact_object(made.owned, "scores.parquet"), b"a" * 1000, "")
    deployment.blobs.put(key_names.checkpoint_prefix(made.owned) + "model.safetensors", b"c" * 10_000, "")
    return made


def gone(deployment: Deployment, now: datetime | None = None) -> set[tuple[str, str]]:
    return {(one.kind, one.id) for one in retention.expired(deployment, now)}


def sweep(deployment: Deployment) -> None:
    for one in list(retention.expired(deployment)):
        assert retention.remove(deployment, one)


def keys(deployment: Deployment, id_: str) -> set[str]:
    return {
        blob.key.split("/")[2] for blob in deployment.blobs.list(key_names.tenant_prefix(TENANT)) if id_ in blob.key
    }


def test_by_default_everything_is_kept(bucket: Deployment) -> None:
    ended(bucket, 10_000)
    assert gone(bucket) == set()


def test_old_analyses_go_with_all_that_they_left_and_open_ones_stay(bucket: Deployment) -> None:
    old, new = ended(bucket, 31), ended(bucket, 29)
    failed, running = ended(bucket, 40, Status.FAILED), ended(bucket, 40, Status.RUNNING)
    asked = keeping(bucket, analyses_days=30)
    assert gone(asked) == {("analysis", old.id), ("analysis", failed.id)}
    sweep(asked)
    assert keys(bucket, old.id) == keys(bucket, failed.id) == set()
    assert keys(bucket, new.id) == keys(bucket, running.id) == {"jobs", "reports", "artifacts", "checkpoints"}
    assert bucket.jobs.find(old.id) is None
    assert gone(asked) == set()


def test_artifacts_and_checkpoints_have_days_of_their_own_and_the_report_stays(bucket: Deployment) -> None:
    one = ended(bucket, 10)
    asked = keeping(bucket, artifacts_days=7, checkpoints_days=14)
    assert gone(asked) == {("artifacts", one.id)}
    sweep(asked)
    assert keys(bucket, one.id) == {"jobs", "reports", "checkpoints"}
    sweep(keeping(bucket, artifacts_days=7, checkpoints_days=9))
    assert keys(bucket, one.id) == {"jobs", "reports"}
    assert bucket.reports.get(one.owned, "json").body == b"r" * 100


def test_beyond_its_bytes_a_tenant_loses_its_oldest_analyses(bucket: Deployment) -> None:
    oldest, older, newest = (ended(bucket, days) for days in (3, 2, 1))
    each = sum(blob.size for blob in bucket.blobs.list(key_names.tenant_prefix(TENANT))) // 3
    assert gone(keeping(bucket, stored_bytes=3 * each + 100)) == set()
    assert gone(keeping(bucket, stored_bytes=2 * each + 100)) == {("analysis", oldest.id)}
    assert gone(keeping(bucket, stored_bytes=each + 100)) == {("analysis", oldest.id), ("analysis", older.id)}
    sweep(keeping(bucket, stored_bytes=each + 100))
    assert keys(bucket, newest.id) == {"jobs", "reports", "artifacts", "checkpoints"}


def test_what_a_study_shows_stays_as_long_as_the_study(bucket: Deployment) -> None:
    study, jobs = study_record((Status.SUCCEEDED, Status.SUCCEEDED))
    finished = datetime.now(UTC) - timedelta(days=20)
    for job in jobs:
        bucket.jobs.submit(job.model_copy(update={"finished_at": finished - timedelta(days=20)}))
    kept: StudyRecord = study.ended(Status.SUCCEEDED).model_copy(update={"finished_at": finished})
    bucket.studies.submit(kept)
    assert gone(keeping(bucket, analyses_days=30)) == set()
    asked = keeping(bucket, analyses_days=15)
    assert gone(asked) == {("study", study.id)} | {("analysis", job.id) for job in jobs}
    sweep(asked)
    assert bucket.studies.find(study.id) is None


def test_uploads_go_when_no_analysis_names_them_any_more(bucket: Deployment) -> None:
    named, loose = (bucket.uploads.keep_inline(TENANT, body, "texts.jsonl") for body in (b"named", b"loose"))
    ended(bucket, 1, dataset={"uri": named.uri})
    later = datetime.now(UTC) + timedelta(days=8)
    asked = keeping(bucket, uploads_days=7)
    assert gone(asked) == set()
    assert gone(asked, later) == {("upload", loose.id)}
    (one,) = retention.expired(asked, later)
    assert retention.remove(asked, one)
    assert [upload.id for upload in bucket.uploads.newest(TENANT, 10)] == [named.id]


def test_an_upload_that_was_sent_again_is_new(bucket: Deployment) -> None:
    first = bucket.uploads.keep_inline(TENANT, b"texts", "texts.jsonl")
    asked, later = keeping(bucket, uploads_days=7), datetime.now(UTC) + timedelta(days=8)
    (one,) = retention.expired(asked, later)
    time.sleep(1.1)  # what a store tells of the time has no fractions
    assert bucket.uploads.keep_inline(TENANT, b"texts", "texts.jsonl") == first
    assert not retention.remove(asked, one)
    (again,) = retention.expired(asked, later)
    assert retention.remove(asked, again)


def test_an_emptied_redis_makes_nothing_look_unused(bucket: Deployment, valkey: redis.Redis) -> None:
    named = bucket.uploads.keep_inline(TENANT, b"named", "texts.jsonl")
    ended(bucket, 1, dataset={"uri": named.uri})
    study, jobs = study_record((Status.SUCCEEDED, Status.SUCCEEDED))
    for job in jobs:
        bucket.jobs.submit(job.model_copy(update={"finished_at": datetime.now(UTC) - timedelta(days=40)}))
    bucket.studies.submit(study.ended(Status.SUCCEEDED))
    asked, later = keeping(bucket, uploads_days=7, analyses_days=30), datetime.now(UTC) + timedelta(days=8)
    assert gone(asked, later) == set()
    valkey.flushdb()
    assert gone(asked, later) == set()


def test_a_tenant_with_a_record_of_a_later_version_is_left_to_that_version(bucket: Deployment) -> None:
    old = ended(bucket, 31)
    asked = keeping(bucket, analyses_days=30, uploads_days=7)
    assert gone(asked) == {("analysis", old.id)}
    newer = record()
    body = newer.model_dump_json().replace('"schema_version":1', '"schema_version":2').encode()
    assert b'"schema_version":2' in body
    bucket.blobs.put(key_names.record_object(key_names.JOBS, newer.owned), body, "")
    assert gone(asked) == set()


def test_what_an_open_analysis_names_stays(bucket: Deployment) -> None:
    tuned = ended(bucket, 40)
    uri = f"s3://{bucket.settings.s3_bucket}/{key_names.checkpoint_prefix(tuned.owned)}"
    waits = ended(bucket, 0, Status.QUEUED, tuned={"uri": uri})
    asked = keeping(bucket, analyses_days=30, checkpoints_days=7, stored_bytes=1)
    assert gone(asked) == set()
    bucket.jobs.update(waits.id, lambda job: job.ended(Status.CANCELLED))
    assert ("analysis", tuned.id) in gone(asked)


def test_parts_of_what_was_never_made_go_after_a_day(bucket: Deployment) -> None:
    upload = bucket.uploads.announce(TENANT, UploadRequest(filename="a.csv"))
    key = key_names.upload_object(TENANT, upload.id)
    token = bucket.blobs.begin_parts(key)
    bucket.blobs.put_part(key, token, 1, b"x" * (5 << 20))
    assert gone(bucket) == set()
    (one,) = retention.expired(bucket, datetime.now(UTC) + timedelta(days=2))
    assert one.kind == "parts"
    assert retention.remove(bucket, one)
    assert bucket.blobs.unfinished() == []


def test_what_is_gone_or_runs_again_by_now_is_left(bucket: Deployment) -> None:
    one = ended(bucket, 31)
    asked = keeping(bucket, analyses_days=30)
    (found,) = retention.expired(asked)
    bucket.jobs.update(one.id, lambda job: job.model_copy(update={"status": Status.QUEUED}))
    assert not retention.remove(asked, found)
    for kind in ("artifacts", "checkpoint"):
        assert not retention.remove(asked, replace(found, kind=kind))
    assert keys(bucket, one.id) == {"jobs", "reports", "artifacts", "checkpoints"}


def test_of_several_processes_one_sweeps_and_once_an_hour(bucket: Deployment) -> None:
    first = ended(bucket, 31)
    asked = keeping(bucket, analyses_days=30)
    RetentionSweep(asked).look()
    assert bucket.jobs.find(first.id) is None
    second = ended(bucket, 31)
    RetentionSweep(asked).look()
    assert bucket.jobs.find(second.id) is not None


def test_a_dry_run_says_what_would_go_and_removes_nothing(bucket: Deployment) -> None:
    old = ended(bucket, 31)
    settings = bucket.settings
    assert settings.s3_access_key is not None
    assert settings.s3_secret_key is not None
    given = {
        "LAYERDRIFT_REDIS_URL": settings.redis_url,
        "LAYERDRIFT_S3_ENDPOINT": str(settings.s3_endpoint),
        "LAYERDRIFT_S3_BUCKET": settings.s3_bucket,
        "LAYERDRIFT_S3_ACCESS_KEY": settings.s3_access_key.get_secret_value(),
        "LAYERDRIFT_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "LAYERDRIFT_RETENTION": '{"analyses_days": 30}',
    }
    done = subprocess.run(
        [sys.executable, "-m", "workers.maintenance", "--dry-run"],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    mistyped = [sys.executable, "-m", "workers.maintenance", "--dryrun"]
    assert subprocess.run(mistyped, env={**os.environ, **given}, capture_output=True, check=False).returncode == 2
    first, last = done.stdout.splitlines()
    assert first.startswith(f"analysis {old.id} of tenant default, ")
    assert last.startswith("1 would be removed, ")
    assert keys(bucket, old.id) == {"jobs", "reports", "artifacts", "checkpoints"}
