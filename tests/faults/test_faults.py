"""`make test-faults`: what is killed, stopped, emptied or filled while jobs run, with the real servers.

After each: every accepted job has come to one right end, its report is whole, the same work had the same result, and no
process, scratch folder or state of an unfinished training is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from backends.deployment import Deployment
from backends.jobs.records import JobRecord, StudyRecord
from deploy.embedded.stack import Stack
from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.errors import LayerdriftError
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import StudyRequest
from layerdrift.contract.study_report import StudyReport
from layerdrift.sdk import Client, StudyFailed
from tests.builders.texts import make_texts

pytestmark = pytest.mark.faults

WAIT_SECONDS = 280.0
STAGES = ("resolve", "finetune", "extract", "compare", "sae", "causal", "report")


@pytest.fixture(scope="module")
def faulty(roots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own, whose lost jobs are soon taken up again."""
    with Stack(environment(roots, tmp_path_factory.mktemp("faulty"))) as running:
        yield running


def environment(roots: Path, home: Path, **changes: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
    named = {
        "LAYERDRIFT_HOME": str(home),
        "LAYERDRIFT_MODEL_ROOTS": str(roots),
        "LAYERDRIFT_LEASE_SECONDS": "3",
        "LAYERDRIFT_CHECKPOINT_SECONDS": "1",
    }
    return {**clean, **named, **changes}


@pytest.fixture(scope="module")
def reviews(roots: Path) -> Path:
    path = roots / "labelled.jsonl"
    rows = ({"text": text, "label": "good" in text} for text in make_texts(900, seed=3))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def everything(base_folder: Path, reviews: Path) -> Callable[[], dict[str, Any]]:
    """Requests with every stage, each another one with a fine-tune of its own, which take some seconds."""
    seeds = count()

    def make() -> dict[str, Any]:
        return {
            "name": uuid.uuid4().hex,
            "seed": next(seeds),
            "base": {"uri": base_folder.as_uri()},
            "finetune": {"train_examples": 400, "epochs": 2, "batch_size": 8, "keep": "last"},
            "dataset": {"uri": reviews.as_uri(), "max_examples": 200},
            "analysis": {"sae": {"tokens": 60_000, "width": 4, "k": 8}},
        }

    return make


def submitted(client: Client, request: dict[str, Any]) -> Analysis:
    return client.submit(AnalysisRequest.model_validate(request))


def pool_child(stack: Stack) -> psutil.Process:
    """The process that runs the job: the largest of the worker's children."""
    children = psutil.Process(stack.pids()["worker"]).children()
    return max(children, key=lambda child: int(child.memory_info().rss))


def in_stage(client: Client, analysis_id: str, stage: str) -> bool:
    """Waits until a stage runs; False where the job ended before it was seen to."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        found = client.get(analysis_id)
        if found.status.final:
            return False
        stages = {one.name.value: one.status for one in found.progress.stages}
        if found.status is Status.RUNNING and stages.get(stage) == "running":
            return True
        time.sleep(0.005)
    raise AssertionError(f"{analysis_id} was never in stage {stage}")


def ended(client: Client, analysis_id: str) -> Analysis:
    """The analysis at its end, however often the service is unavailable until then."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            *_, last = client.watch(analysis_id, timeout=max(1.0, deadline - time.monotonic()))
        except Exception as error:
            last_error = error
            time.sleep(0.5)
            continue
        return last
    raise AssertionError(f"{analysis_id} did not end: {last_error}")


def record_of(stack: Stack, analysis_id: str) -> JobRecord:
    return Deployment.connect(stack.settings).jobs.get(analysis_id)


def expect_nothing_left(stack: Stack) -> None:
    """No scratch folder, no state of a training, no lease, nothing open, one record in S3 as in Redis."""
    deployment = Deployment.connect(stack.settings)
    scratch = stack.settings.scratch
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and scratch.is_dir() and any(scratch.iterdir()):
        time.sleep(0.5)
    assert not scratch.is_dir() or list(scratch.iterdir()) == []
    assert deployment.jobs.open_ids() == []
    assert deployment.studies.open_ids() == []
    left = [blob.key for blob in deployment.blobs.list("tenants/")]
    assert [key for key in left if "/unfinished/" in key] == []
    for key in left:
        if "/jobs/" in key:
            stored = JobRecord.model_validate_json(deployment.blobs.get(key))
            assert stored.status is deployment.jobs.get(stored.id).status
            assert not deployment.leases.held(stored.id)
        if "/studies/" in key:
            study = StudyRecord.model_validate_json(deployment.blobs.get(key))
            assert study.status is deployment.studies.get(study.id).status
            assert not deployment.leases.held(study.id)


def expect_whole(client: Client, stack: Stack, analysis_id: str) -> Report:
    """A job that succeeded, with its report in every format and every file that its list names."""
    last = ended(client, analysis_id)
    assert last.error is None
    assert last.status is Status.SUCCEEDED
    assert all(stage.status == "succeeded" for stage in last.progress.stages)
    report = client.report(analysis_id)
    assert client.rendered_report(analysis_id, "html").endswith("</html>")
    assert client.rendered_report(analysis_id, "md").startswith("# ")
    listed = httpx.get(f"{stack.url}/v1/analyses/{analysis_id}/artifacts", timeout=60).json()["items"]
    for artifact in listed:
        assert int(httpx.get(artifact["url"], timeout=60).headers["Content-Length"]) == artifact["bytes"]
    return report


@pytest.mark.parametrize("stage", STAGES)
def test_a_child_that_is_killed_in_a_stage_costs_an_attempt_and_no_more(
    faulty: Stack, everything: Callable[[], dict[str, Any]], stage: str
) -> None:
    with Client(faulty.url) as client:
        for _ in range(5):  # a short stage may have ended before the signal came
            request = everything()
            analysis = submitted(client, request)
            if in_stage(client, analysis.id, stage):
                pool_child(faulty).kill()
            report = expect_whole(client, faulty, analysis.id)
            if record_of(faulty, analysis.id).attempts == 2:
                break
        else:
            raise AssertionError(f"no job was hit in stage {stage}")
        Deployment.connect(faulty.settings).blobs.delete_all("tenants/default/finetunes/")  # it is to tune for itself
        again = submitted(client, {**request, "name": "undisturbed"})
        undisturbed = expect_whole(client, faulty, again.id)
        assert report.layers == undisturbed.layers
        assert report.models["tuned"].fingerprint == undisturbed.models["tuned"].fingerprint
    expect_nothing_left(faulty)


@pytest.mark.parametrize(("program", "stage"), [("worker", "sae"), ("api", "extract")])
def test_a_program_that_is_killed_comes_back_and_the_job_goes_on(
    faulty: Stack, everything: Callable[[], dict[str, Any]], program: str, stage: str
) -> None:
    with Client(faulty.url) as client:
        analysis = submitted(client, everything())
        assert in_stage(client, analysis.id, stage)
        killed = psutil.Process(faulty.pids()[program])
        children = killed.children(recursive=True)
        killed.kill()
        expect_whole(client, faulty, analysis.id)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    expect_nothing_left(faulty)


def test_a_job_that_kills_every_worker_fails_as_worker_lost(
    faulty: Stack, everything: Callable[[], dict[str, Any]]
) -> None:
    with Client(faulty.url) as client:
        analysis = submitted(client, everything())
        for _ in range(faulty.settings.max_attempts):
            assert in_stage(client, analysis.id, "sae")
            child = pool_child(faulty)
            child.kill()
            child.wait(10)
            while client.get(analysis.id).status is Status.RUNNING and record_running(client, analysis.id):
                time.sleep(0.05)
        last = ended(client, analysis.id)
        assert last.status is Status.FAILED
        assert last.error is not None
        assert last.error.type == "urn:layerdrift:worker-lost"
    expect_nothing_left(faulty)


def record_running(client: Client, analysis_id: str) -> bool:
    """Whether the stages still stand as the killed worker left them."""
    stages = client.get(analysis_id).progress.stages
    return any(stage.name == "sae" and stage.status == "running" for stage in stages)


def hold_down(stack: Stack, name: str, seconds: float) -> None:
    """Kills a program again and again, so that it is unavailable for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(stack.pids()[name], signal.SIGKILL)
        time.sleep(0.1)


@pytest.mark.parametrize("seconds", [3, 30])
def test_jobs_outlive_an_outage_of_redis(faulty: Stack, everything: Callable[[], dict[str, Any]], seconds: int) -> None:
    with Client(faulty.url) as client:
        running, queued = (submitted(client, everything()) for _ in range(2))
        assert in_stage(client, running.id, "sae")
        hold_down(faulty, "valkey", seconds)
        for analysis in (running, queued):
            expect_whole(client, faulty, analysis.id)
    expect_nothing_left(faulty)


def test_jobs_outlive_an_emptied_redis(faulty: Stack, everything: Callable[[], dict[str, Any]]) -> None:
    with Client(faulty.url) as client:
        running, *queued = (submitted(client, everything()) for _ in range(3))
        assert in_stage(client, running.id, "sae")
        redis.Redis.from_url(faulty.settings.redis_url).flushall()
        for analysis in (running, *queued):
            expect_whole(client, faulty, analysis.id)
    expect_nothing_left(faulty)


@pytest.mark.parametrize("stage", ["finetune", "sae", "report"])
def test_jobs_outlive_an_outage_of_s3(faulty: Stack, everything: Callable[[], dict[str, Any]], stage: str) -> None:
    with Client(faulty.url) as client:
        analysis = submitted(client, everything())
        in_stage(client, analysis.id, stage)
        hold_down(faulty, "seaweedfs", 3)
        expect_whole(client, faulty, analysis.id)
    expect_nothing_left(faulty)


def test_two_hundred_jobs_of_twenty_clients_become_a_hundred(
    faulty: Stack, base_folder: Path, noised_folder: Path
) -> None:
    texts = make_texts(24)

    def request(seed: int) -> dict[str, Any]:
        return {
            "base": {"uri": base_folder.as_uri()},
            "tuned": {"uri": noised_folder.as_uri()},
            "dataset": {"inline": {"texts": texts}},
            "analysis": {"sae": None, "grafts": False},
            "seed": 1000 + seed,
        }

    def client_of(number: int) -> list[tuple[int, str]]:
        with Client(faulty.url, timeout=120) as client:
            return [(seed, submitted(client, request(seed)).id) for seed in range(number % 10, 100, 10)]

    with ThreadPoolExecutor(20) as pool:
        posted = [pair for pairs in pool.map(client_of, range(20)) for pair in pairs]
    assert len(posted) == 200
    by_seed: dict[int, set[str]] = {}
    for seed, analysis_id in posted:
        by_seed.setdefault(seed, set()).add(analysis_id)
    assert len(by_seed) == 100
    assert all(len(ids) == 1 for ids in by_seed.values())
    with Client(faulty.url) as client:
        for (analysis_id,) in by_seed.values():
            assert ended(client, analysis_id).status is Status.SUCCEEDED
            assert record_of(faulty, analysis_id).attempts == 1
    expect_nothing_left(faulty)


def test_one_job_is_run_by_one_of_two_workers(
    faulty: Stack, everything: Callable[[], dict[str, Any]], roots: Path, tmp_path: Path
) -> None:
    settings = faulty.settings
    access, secret = (one.get_secret_value() if one else "" for one in (settings.s3_access_key, settings.s3_secret_key))
    given = environment(
        roots,
        tmp_path,
        LAYERDRIFT_REDIS_URL=settings.redis_url,
        LAYERDRIFT_S3_ENDPOINT=settings.s3_endpoint or "",
        LAYERDRIFT_S3_ACCESS_KEY=access,
        LAYERDRIFT_S3_SECRET_KEY=secret,
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    argv = [sys.executable, "-m", "celery", "-A", "workers.main", "worker", "--concurrency=1"]
    with (tmp_path / "worker.log").open("w") as log:
        second = subprocess.Popen(argv, env=given, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            workers = Deployment.connect(settings).workers
            deadline = time.monotonic() + 60
            while workers.listening("cpu") < 2:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            with Client(faulty.url) as client:
                analysis = submitted(client, everything())
                for _ in range(5):
                    Deployment.connect(settings).queue.announce(record_of(faulty, analysis.id))
                expect_whole(client, faulty, analysis.id)
            assert record_of(faulty, analysis.id).attempts == 1
        finally:
            os.killpg(second.pid, signal.SIGKILL)
            second.wait()
    expect_nothing_left(faulty)


def study_of(everything: Callable[[], dict[str, Any]]) -> StudyRequest:
    """Three fine-tunes, of which two differ by their seed."""
    members = [{**everything(), "name": uuid.uuid4().hex} for _ in range(3)]
    shared = ("base", "dataset")
    analysis = {"sae": None, "grafts": False}
    own = [{key: value for key, value in member.items() if key not in (*shared, "analysis")} for member in members]
    own[2]["finetune"] = {**own[2]["finetune"], "epochs": 1}
    body = {key: members[0][key] for key in shared}
    return StudyRequest.model_validate({"name": uuid.uuid4().hex, "analysis": analysis, "members": own, **body})


def studied(client: Client, study_id: str) -> StudyReport:
    """The report of a study, however often the service is unavailable until then."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            return client.wait_study(study_id, timeout=max(1.0, deadline - time.monotonic()))
        except (LayerdriftError, httpx.HTTPError) as error:
            if isinstance(error, StudyFailed):
                raise
            time.sleep(0.5)
    raise AssertionError(f"{study_id} did not end")


def undisturbed(client: Client, asked: StudyRequest, report: StudyReport) -> None:
    """The same members in another study: the same numbers, from the same analyses."""
    again = client.submit_study(asked.model_copy(update={"name": "undisturbed"}))
    other = studied(client, again.id)
    assert [member.layers for member in report.members] == [member.layers for member in other.members]
    assert (report.layers, report.similarity) == (other.layers, other.similarity)
    assert all(member.layers for member in report.members)


def in_its_own_part(stack: Stack, study_id: str) -> bool:
    """Waits until the members have ended and a worker writes the study's report; False where it was too quick."""
    studies, deadline = Deployment.connect(stack.settings).studies, time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        status = studies.get(study_id).status
        if status is not Status.QUEUED:
            return status is Status.RUNNING
        time.sleep(0.005)
    raise AssertionError(f"the members of {study_id} did not end")


def test_a_study_outlives_killed_workers_and_an_emptied_redis(
    faulty: Stack, everything: Callable[[], dict[str, Any]]
) -> None:
    with Client(faulty.url) as client:
        asked = study_of(everything)
        study = client.submit_study(asked)
        assert in_stage(client, study.members[0].analysis_id, "extract")
        pool_child(faulty).kill()
        assert in_stage(client, study.members[1].analysis_id, "finetune")
        redis.Redis.from_url(faulty.settings.redis_url).flushall()
        undisturbed(client, asked, studied(client, study.id))
    expect_nothing_left(faulty)


def test_a_worker_that_is_killed_while_it_writes_a_studys_report_loses_nothing(
    faulty: Stack, everything: Callable[[], dict[str, Any]]
) -> None:
    with Client(faulty.url) as client:
        for _ in range(5):
            asked = study_of(everything)
            study = client.submit_study(asked)
            if in_its_own_part(faulty, study.id):
                pool_child(faulty).kill()
            report = studied(client, study.id)
            if Deployment.connect(faulty.settings).studies.get(study.id).attempts == 2:
                break
        else:
            raise AssertionError("no study was hit")
        undisturbed(client, asked, report)
    expect_nothing_left(faulty)


def fill(path: Path) -> None:
    """Takes all that is left of a disk."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


def test_a_scratch_that_fills_fails_the_job_and_is_emptied(
    roots: Path, tmp_path: Path, everything: Callable[[], dict[str, Any]]
) -> None:
    """A disk that is full before is no worker's: such a request is refused."""
    scratch = tmp_path / "home" / "scratch"
    scratch.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(scratch)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system of a limited size can be mounted here: {mounted.stderr}")
    try:
        with Stack(environment(roots, tmp_path / "home")) as small, Client(small.url) as client:
            made = submitted(client, everything())
            fill(scratch / "filler")
            last = ended(client, made.id)
            assert last.status is Status.FAILED
            assert last.error is not None
            assert "No space left on device" in last.error.detail
            (scratch / "filler").unlink()
            expect_nothing_left(small)
    finally:
        subprocess.run(["umount", str(scratch)], check=True)
