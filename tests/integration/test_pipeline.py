"""What becomes of a job when something goes wrong, with real records and leases; sources are ours to break."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.queue import JobQueue, celery_app
from backends.storage import key_names
from deploy.embedded.ports import LOOPBACK, choose
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from tests.builders.jobs import WatchedSources, submitted
from tests.builders.texts import make_texts
from workers import pipeline
from workers.job import run_job
from workers.presence import Presence
from workers.reconciler import PATIENCE, Reconciler
from workers.stages.causal.stage import measure_effects


@pytest.fixture
def job(deployment: Deployment, base_folder: Path, noised_folder: Path) -> JobRecord:
    request = AnalysisRequest.model_validate(
        {
            "base": {"uri": base_folder.as_uri()},
            "tuned": {"uri": noised_folder.as_uri()},
            "dataset": {"inline": {"texts": make_texts(60)}},
            "analysis": {"sae": None},
        }
    )
    return submitted(deployment, request)


def test_a_job_runs_to_its_report_and_leaves_no_scratch(deployment: Deployment, job: JobRecord) -> None:
    run_job(deployment, job.id)
    found = deployment.jobs.get(job.id)
    assert (found.status, found.attempts, found.progress.fraction) == (Status.SUCCEEDED, 1, 1.0)
    assert [stage.status for stage in found.progress.stages] == ["succeeded"] * 5
    assert deployment.reports.get(job.owned, "json").body.startswith(b"{")
    assert list(deployment.settings.scratch.iterdir()) == []
    assert not deployment.leases.held(job.id)
    assert deployment.jobs.open_ids() == []


def test_what_compare_found_can_be_read_while_later_stages_run(
    deployment: Deployment, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[JobRecord, Report, str]] = []

    def watched(*given: Any) -> Any:
        record = deployment.jobs.get(job.id)
        bodies = [deployment.reports.preliminary(job.owned, format) for format in ("json", "html")]
        assert bodies[0] is not None
        assert bodies[1] is not None
        seen.append((record, Report.model_validate_json(bodies[0]), bodies[1].decode()))
        return measure_effects(*given)

    monkeypatch.setattr(pipeline, "measure_effects", watched)
    run_job(deployment, job.id)
    ((record, early, page),) = seen
    assert (record.status, record.report) == (Status.RUNNING, "preliminary")
    assert early.status == "preliminary"
    assert [stage.stage for stage in early.pending] == ["causal"]
    assert "Preliminary report" in page
    final = Report.model_validate_json(deployment.reports.get(job.owned, "json").body)
    assert (final.status, final.pending) == ("complete", [])
    assert early.layers[0].graft is None
    without_grafts = [layer.model_copy(update={"graft": None}) for layer in final.layers]
    assert early.layers == without_grafts
    assert record.drift == [layer.drift for layer in final.layers]
    assert (early.outputs, early.zones) == (final.outputs, final.zones)
    assert deployment.reports.preliminary(job.owned, "json") is None
    assert deployment.jobs.get(job.id).report == "complete"


def test_a_job_that_fails_later_has_no_report_at_all(
    deployment: Deployment, job: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no grafts today")

    monkeypatch.setattr(pipeline, "measure_effects", broken)
    run_job(deployment, job.id)
    found = deployment.jobs.get(job.id)
    assert (found.status, found.report, found.drift) == (Status.FAILED, "none", None)
    assert deployment.reports.preliminary(job.owned, "json") is None


def test_reference_texts_and_groups_come_to_the_report(
    deployment: Deployment, base_folder: Path, noised_folder: Path
) -> None:
    texts, general = make_texts(80), make_texts(160, seed=5)
    body = {
        "base": {"uri": base_folder.as_uri()},
        "tuned": {"uri": noised_folder.as_uri()},
        "dataset": {
            "inline": {"texts": texts, "groups": [place // 4 for place in range(80)]},
            "reference": {"inline": {"texts": [*texts[:10], *general]}, "max_examples": 60},
        },
        "analysis": {"sae": None},
    }
    made = submitted(deployment, AnalysisRequest.model_validate(body))
    run_job(deployment, made.id)
    assert deployment.jobs.get(made.id).error is None
    report = Report.model_validate_json(deployment.reports.get(made.owned, "json").body)
    assert report.dataset.units == 20
    assert report.reference is not None
    assert report.reference.texts == 60
    assert report.reference.source == "inline"
    assert len(report.reference.drift) == len(report.layers)
    for layer, drift in zip(report.layers, report.reference.drift, strict=True):
        assert drift.value == pytest.approx(layer.drift, abs=0.1)
        assert drift.low is not None
    assert "60 reference texts" in deployment.reports.get(made.owned, "md").body.decode()
    assert "What was forgotten" in deployment.reports.get(made.owned, "html").body.decode()


def test_a_reference_that_holds_nothing_new_fails_with_its_own_pointer(
    deployment: Deployment, base_folder: Path, noised_folder: Path
) -> None:
    texts = make_texts(60)
    body = {
        "base": {"uri": base_folder.as_uri()},
        "tuned": {"uri": noised_folder.as_uri()},
        "dataset": {"inline": {"texts": texts}, "reference": {"inline": {"texts": texts}}},
        "analysis": {"sae": None},
    }
    made = submitted(deployment, AnalysisRequest.model_validate(body))
    run_job(deployment, made.id)
    error = deployment.jobs.get(made.id).error
    assert error is not None
    assert [one.pointer for one in error.errors] == ["/dataset/reference"]
    assert "0 texts of the reference are not also in dataset" in error.detail


def test_a_crash_fails_the_job_with_the_name_of_its_stage(deployment: Deployment, job: JobRecord) -> None:
    def crash() -> None:
        raise ZeroDivisionError("division by zero")

    run_job(replace(deployment, sources=WatchedSources(deployment, crash)), job.id)
    found = deployment.jobs.get(job.id)
    assert found.status is Status.FAILED
    assert found.error is not None
    assert (found.error.stage, found.error.status) == ("resolve", 500)
    assert found.error.detail == "resolve failed with ZeroDivisionError: division by zero"
    assert [stage.status for stage in found.progress.stages] == ["failed", *["pending"] * 4]
    assert list(deployment.settings.scratch.iterdir()) == []


def test_a_scratch_that_cannot_be_written_fails_the_job_too(deployment: Deployment, job: JobRecord) -> None:
    deployment.settings.scratch.touch()
    run_job(deployment, job.id)
    error = deployment.jobs.get(job.id).error
    assert error is not None
    assert error.stage == "resolve"
    assert "NotADirectoryError" in error.detail


def test_cancelling_stops_a_running_job(deployment: Deployment, job: JobRecord) -> None:
    def cancel() -> None:
        deployment.jobs.update(job.id, lambda found: found.model_copy(update={"cancel_requested": True}))

    run_job(replace(deployment, sources=WatchedSources(deployment, cancel)), job.id)
    found = deployment.jobs.get(job.id)
    assert (found.status, found.error) == (Status.CANCELLED, None)
    assert found.progress.stages[-1].status == "pending"


@pytest.fixture
def tuning(deployment: Deployment, base_folder: Path) -> Callable[..., JobRecord]:
    """Submits a fine-tune with everything that it can leave; changes are of the analysis around it."""
    texts = make_texts(300, seed=21)
    labels = ["yes" if "good" in text else "no" for text in texts]

    def make(seed: int = 0, **analysis: object) -> JobRecord:
        request = AnalysisRequest.model_validate(
            {
                "base": {"uri": base_folder.as_uri()},
                "finetune": {"epochs": 2, "batch_size": 16, "checkpoints": 2, "keep": "last"},
                "dataset": {"inline": {"texts": texts, "labels": labels}},
                "analysis": {"sae": None, "noise_floors": ["numerical", "reseed"], **analysis},
                "seed": seed,
            }
        )
        return submitted(deployment, request)

    return make


def report_of(deployment: Deployment, record: JobRecord) -> Report:
    run_job(deployment, record.id)
    assert deployment.jobs.get(record.id).error is None
    return Report.model_validate_json(deployment.reports.get(record.owned, "json").body)


def taken_over(deployment: Deployment, record: JobRecord) -> bool:
    return any(
        stage.detail.startswith("reused an identical") for stage in deployment.jobs.get(record.id).progress.stages
    )


@pytest.mark.slow
def test_the_same_fine_tune_is_made_once_for_two_analyses(
    deployment: Deployment, tuning: Callable[..., JobRecord]
) -> None:
    """With its snapshots and nulls; another seed is another fine-tune."""
    first, second, other = tuning(), tuning(probes=False), tuning(seed=1)
    one, two, three = (report_of(deployment, job) for job in (first, second, other))
    assert [taken_over(deployment, job) for job in (first, second, other)] == [False, True, False]
    assert one.models["tuned"].fingerprint == two.models["tuned"].fingerprint != three.models["tuned"].fingerprint
    assert (one.finetune, one.trajectory, one.noise_floors) == (two.finetune, two.trajectory, two.noise_floors)
    assert [layer.similarity for layer in one.layers] == [layer.similarity for layer in two.layers]
    for job in (first, second):
        names = {artifact.name for artifact in deployment.artifacts.listed(job.owned, 60)}
        assert "checkpoint/model.safetensors" in names
        assert "checkpoint/nulls/reseed/model.safetensors" in names
    deployment.blobs.delete_all(key_names.checkpoint_prefix(second.owned))
    third = tuning(grafts=False)
    assert report_of(deployment, third).models["tuned"].fingerprint == one.models["tuned"].fingerprint
    assert not taken_over(deployment, third)


@pytest.mark.slow
def test_a_kept_fine_tune_that_was_changed_is_made_again(
    deployment: Deployment, tuning: Callable[..., JobRecord]
) -> None:
    first = tuning(seed=2)
    one = report_of(deployment, first)
    key = key_names.checkpoint_prefix(first.owned) + "model.safetensors"
    deployment.blobs.put(key, deployment.blobs.get(key)[:-4] + b"evil", "application/octet-stream")
    second = tuning(seed=2, probes=False)
    assert report_of(deployment, second).models["tuned"].fingerprint == one.models["tuned"].fingerprint
    assert not taken_over(deployment, second)


@pytest.fixture
def sae_job(deployment: Deployment, base_folder: Path, noised_folder: Path) -> JobRecord:
    request = AnalysisRequest.model_validate(
        {
            "base": {"uri": base_folder.as_uri()},
            "tuned": {"uri": noised_folder.as_uri()},
            "dataset": {"inline": {"texts": make_texts(800)}, "max_examples": 200},
            "analysis": {"sae": {"tokens": 150_000, "width": 8, "k": 8}},
        }
    )
    return submitted(deployment, request)


QUICK = {"checkpoint_seconds": 1, "lease_seconds": 3}


@contextmanager
def once(happens: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Acts as soon as something has happened beside the block, and waits for that."""

    def watch() -> None:
        while not happens():
            time.sleep(0.02)
        act()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield
    watcher.join(timeout=10)
    assert not watcher.is_alive()


@pytest.mark.slow
def test_autoencoders_go_on_where_a_lost_worker_left_them(
    deployment: Deployment, sae_job: JobRecord, valkey: redis.Redis
) -> None:
    """The report is that of a job that was never lost, and what was kept in between is gone."""
    quick = replace(deployment, settings=deployment.settings.model_copy(update=QUICK))
    prefix = key_names.unfinished_prefix(sae_job.owned)

    def kept() -> bool:
        return any(blob.key.endswith("latest.json") for blob in deployment.blobs.list(prefix))

    def lose() -> None:
        valkey.set(key_names.lease(sae_job.id), "another", px=60_000)

    with once(kept, lose):
        run_job(quick, sae_job.id)
    assert deployment.jobs.get(sae_job.id).status is Status.RUNNING
    latest = next(blob.key for blob in deployment.blobs.list(prefix) if blob.key.endswith("latest.json"))
    kept_step = json.loads(deployment.blobs.get(latest))["number"]
    valkey.delete(key_names.lease(sae_job.id))
    records = []

    def ended() -> bool:
        records.append(deployment.jobs.get(sae_job.id))
        return records[-1].status.final

    with once(ended, lambda: None):
        run_job(deployment, sae_job.id)
    assert deployment.jobs.get(sae_job.id).status is Status.SUCCEEDED
    assert deployment.blobs.list(prefix) == []
    steps = [
        int(step)
        for record in records
        if record.attempts == 2
        for stage in record.progress.stages
        for step in re.findall(r"training autoencoders of the base model: step (\d+) of", stage.detail or "")
    ]
    assert min(steps) > kept_step > 0
    whole = sae_job.model_copy(update={"id": f"an_{uuid.uuid4().hex[:26]}"})
    deployment.jobs.submit(whole)
    run_job(deployment, whole.id)
    resumed, uninterrupted = (json.loads(deployment.reports.get(one.owned, "json").body) for one in (sae_job, whole))
    assert resumed["layers"] == uninterrupted["layers"]
    assert resumed["sae_runs"] == uninterrupted["sae_runs"]


def test_cancelling_stops_the_training_of_autoencoders_within_two_seconds(
    deployment: Deployment, sae_job: JobRecord
) -> None:
    asked = []

    def training() -> bool:
        stages = deployment.jobs.get(sae_job.id).progress.stages
        return any("step 3" in (stage.detail or "") for stage in stages if stage.name == "sae")

    def cancel() -> None:
        asked.append(time.monotonic())
        deployment.jobs.cancel(sae_job.id)

    with once(training, cancel):
        run_job(deployment, sae_job.id)
    assert time.monotonic() - asked[0] < 2
    assert deployment.jobs.get(sae_job.id).status is Status.CANCELLED
    assert deployment.blobs.list(key_names.unfinished_prefix(sae_job.owned)) == []
    assert list(deployment.settings.scratch.iterdir()) == []


def test_a_job_that_another_worker_holds_is_left_alone(deployment: Deployment, job: JobRecord) -> None:
    deployment.leases.take(job.id, "another", 60)
    run_job(deployment, job.id)
    found = deployment.jobs.get(job.id)
    assert (found.status, found.attempts) == (Status.QUEUED, 0)
    assert deployment.leases.held(job.id)


def test_a_worker_that_lost_its_lease_writes_nothing_more(
    deployment: Deployment, job: JobRecord, valkey: redis.Redis
) -> None:
    quick = replace(deployment, settings=deployment.settings.model_copy(update={"lease_seconds": 3}))

    def lose() -> None:
        valkey.set(key_names.lease(job.id), "another", px=60_000)
        time.sleep(1.5)

    run_job(replace(quick, sources=WatchedSources(quick, lose)), job.id)
    found = deployment.jobs.get(job.id)
    assert found.status is Status.RUNNING
    assert deployment.leases.held(job.id)


def test_a_job_that_killed_every_worker_fails_as_worker_lost(deployment: Deployment, job: JobRecord) -> None:
    """And what the last one had kept of its trainings is gone."""
    lost = deployment.settings.max_attempts
    deployment.jobs.update(job.id, lambda found: found.model_copy(update={"attempts": lost, "status": Status.RUNNING}))
    deployment.blobs.put(key_names.unfinished_prefix(job.owned) + "run-0/latest.json", b"{}", "application/json")
    run_job(deployment, job.id)
    assert deployment.blobs.list(key_names.unfinished_prefix(job.owned)) == []
    found = deployment.jobs.get(job.id)
    assert found.status is Status.FAILED
    assert found.error is not None
    assert found.error.type == "urn:layerdrift:worker-lost"
    assert f"{lost} workers took this job" in found.error.detail


def test_a_cancelled_job_whose_worker_died_ends_with_the_next_one(deployment: Deployment, job: JobRecord) -> None:
    left = key_names.unfinished_prefix(job.owned) + "run-0/latest.json"
    deployment.blobs.put(left, b"{}", "application/json")
    running = {"attempts": 1, "status": Status.RUNNING}
    deployment.jobs.update(job.id, lambda found: found.model_copy(update=running))
    deployment.jobs.cancel(job.id)
    run_job(deployment, job.id)
    found = deployment.jobs.get(job.id)
    assert (found.status, found.attempts) == (Status.CANCELLED, 1)
    assert deployment.blobs.list(key_names.unfinished_prefix(job.owned)) == []


def test_a_job_that_has_ended_is_not_run_again(deployment: Deployment, job: JobRecord) -> None:
    deployment.jobs.cancel(job.id)
    run_job(deployment, job.id)
    assert deployment.jobs.get(job.id).status is Status.CANCELLED


def test_a_job_that_nobody_holds_is_announced_again(deployment: Deployment, job: JobRecord) -> None:
    reconciler = Reconciler(deployment)
    looks = [reconciler.look() for _ in range(PATIENCE)]
    assert looks == [[]] * (PATIENCE - 1) + [[job.id]]
    assert deployment.queue.waiting() == 1


def test_a_job_that_waits_for_its_turn_is_not_announced_twice(deployment: Deployment, job: JobRecord) -> None:
    deployment.queue.announce(job)
    reconciler = Reconciler(deployment)
    assert [reconciler.look() for _ in range(2 * PATIENCE)] == [[]] * (2 * PATIENCE)


def test_what_a_killed_worker_left_is_swept_away_and_nothing_else(deployment: Deployment, job: JobRecord) -> None:
    long_ago = time.time() - 3600
    for name in ("an_dead.one", "an_alive.two", "an_new.three"):
        folder = deployment.settings.scratch / name
        folder.mkdir(parents=True)
        if name != "an_new.three":
            os.utime(folder, (long_ago, long_ago))
    deployment.leases.take("an_alive", "two", 60)
    Presence(deployment, "tester").look()
    assert {folder.name for folder in deployment.settings.scratch.iterdir()} == {"an_alive.two", "an_new.three"}


def test_an_object_store_that_is_away_hands_the_job_back(deployment: Deployment, job: JobRecord) -> None:
    def away() -> None:
        raise UnavailableError("S3 could not be reached")

    run_job(replace(deployment, sources=WatchedSources(deployment, away)), job.id)
    found = deployment.jobs.get(job.id)
    assert (found.status, found.error, found.attempts) == (Status.RUNNING, None, 1)
    assert not deployment.leases.held(job.id)
    run_job(deployment, job.id)
    assert deployment.jobs.get(job.id).status is Status.SUCCEEDED


def test_open_jobs_come_back_from_s3_when_redis_has_lost_everything(
    deployment: Deployment, job: JobRecord, valkey: redis.Redis
) -> None:
    valkey.flushdb()
    assert deployment.jobs.open_ids() == []
    reconciler = Reconciler(deployment)
    reconciler.look()
    assert job.id in deployment.jobs.open_ids()
    assert job.id in [id_ for _ in range(PATIENCE) for id_ in reconciler.look()]


def test_a_queue_that_is_away_does_not_end_the_reconciler(deployment: Deployment, job: JobRecord) -> None:
    port = choose({"nobody": 0})["nobody"]
    nobody = celery_app(deployment.settings.model_copy(update={"redis_url": f"redis://{LOOPBACK}:{port}/0"}))
    nobody.conf.broker_transport_options = {"max_retries": 1}
    nobody.conf.task_publish_retry = False
    away = replace(deployment, queue=JobQueue(nobody, deployment.queue._redis, deployment.workers))
    with pytest.raises(UnavailableError, match="queue could not be reached"):
        away.queue.announce(job)
