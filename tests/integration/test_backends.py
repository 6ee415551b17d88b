from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty

import pytest
import redis

from backends.deployment import Deployment
from backends.estimates.capacity import Capacity
from backends.jobs.records import RECORD_SCHEMA, Delivery, NewerRecordError, TrialRecord, Wanted
from backends.queue import QUEUES, celery_app
from backends.settings import Settings
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from backends.storage.key_names import Owned
from deploy.embedded.ports import LOOPBACK, choose
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, DeniedError, InputError, NotFoundError, Problem, UnavailableError
from layerdrift.contract.request import Webhook
from tests.builders.records import record
from tests.builders.study_records import study_record

PROBLEM = Problem(type="urn:layerdrift:stage", title="t", status=500, detail="it broke")


def test_thirty_two_equal_submissions_at_once_make_one_job(settings: Settings, deployment: Deployment) -> None:
    job = record()
    stores = [Deployment.connect(settings).jobs for _ in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda store: store.submit(job), stores))
    assert sum(to_run for _, to_run in answers) == 1
    assert {found.id for found, _ in answers} == {job.id}


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_a_job_that_ended_badly_runs_again_when_it_is_asked_for_again(deployment: Deployment, status: Status) -> None:
    job = record()
    deployment.jobs.submit(job)
    deployment.jobs.update(job.id, lambda found: found.ended(status, PROBLEM))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: deployment.jobs.submit(job), range(8)))
    assert sum(to_run for _, to_run in answers) == 1
    again = deployment.jobs.get(job.id)
    assert (again.status, again.error) == (Status.QUEUED, None)


def test_a_job_that_succeeded_is_not_run_again(deployment: Deployment) -> None:
    job = record()
    deployment.jobs.submit(job)
    deployment.jobs.update(job.id, lambda found: found.ended(Status.SUCCEEDED))
    found, to_run = deployment.jobs.submit(record(analysis_id=job.id))
    assert (found.status, to_run) == (Status.SUCCEEDED, False)


def test_what_redis_has_lost_is_read_from_s3(deployment: Deployment, valkey: redis.Redis) -> None:
    job = record()
    deployment.jobs.submit(job)
    ended = deployment.jobs.update(job.id, lambda found: found.ended(Status.SUCCEEDED))
    valkey.flushdb()
    assert deployment.jobs.get(job.id) == ended
    assert [found.id for found in deployment.listing.page("default", 10, None)[0]] == [job.id]


@pytest.mark.parametrize("emptied", [False, True], ids=["in Redis", "in S3 alone"])
def test_a_record_of_a_later_version_is_refused_and_never_written(
    deployment: Deployment, valkey: redis.Redis, emptied: bool
) -> None:
    own, newer = record(age_seconds=60), record()
    for job in (own, newer):
        deployment.jobs.submit(job)
    key = key_names.record_object(key_names.JOBS, newer.owned)
    body = newer.model_dump(mode="json") | {"schema_version": RECORD_SCHEMA + 1, "added_later": "kept"}
    written = json.dumps(body).encode()
    deployment.blobs.put(key, written, "application/json")
    valkey.set(key_names.record(key_names.JOBS, newer.id), written)
    if emptied:
        valkey.flushdb()
        assert deployment.jobs.restore() >= 1  # earlier tests' too
        assert deployment.jobs.find(own.id) == own
        assert not valkey.exists(key_names.restored(key_names.JOBS))
    for asked in (
        deployment.jobs.get,
        deployment.jobs.cancel,
        lambda id_: deployment.jobs.update(id_, lambda one: one),
    ):
        with pytest.raises(NewerRecordError, match="upgrade this process"):
            asked(newer.id)
    assert deployment.jobs.readable(newer.id) is None
    listed = {found.id for found in deployment.listing.page("default", 100, None)[0]}
    assert own.id in listed
    assert newer.id not in listed
    assert deployment.blobs.get(key) == written
    assert valkey.get(key_names.record(key_names.JOBS, newer.id)) == (None if emptied else written)


def test_what_was_asked_of_a_job_survives_an_emptied_redis(deployment: Deployment, valkey: redis.Redis) -> None:
    """To stop while it runs, and to tell somebody after it had ended; its progress may be lost."""
    told = Delivery(webhook=Webhook(url="https://example.org/", secret_ref="ci"))
    running, done = record(), record()
    for job in (running, done):
        deployment.jobs.submit(job)
    deployment.jobs.update(running.id, lambda found: found.model_copy(update={"status": Status.RUNNING}))
    deployment.jobs.cancel(running.id)
    deployment.jobs.update(done.id, lambda found: found.ended(Status.SUCCEEDED))
    deployment.jobs.update(done.id, lambda found: found.model_copy(update={"deliveries": [told]}))
    valkey.flushdb()
    assert deployment.jobs.get(running.id).cancel_requested
    assert deployment.jobs.get(done.id).deliveries == [told]
    assert valkey.zscore(key_names.WEBHOOKS, done.id) is not None


@pytest.mark.parametrize("listens", [("cpu",), ("gpu", "cpu")])
def test_a_job_is_announced_where_the_strongest_workers_listen(
    deployment: Deployment, valkey: redis.Redis, listens: tuple[str, ...]
) -> None:
    deployment.workers.announce("one", listens, 60)
    deployment.queue.announce(record())
    assert [name for name in QUEUES if taken(deployment, name)] == [listens[0]]


def test_urgent_jobs_are_taken_first_and_equal_ones_in_turn(deployment: Deployment) -> None:
    jobs = [record().model_copy(update={"priority": priority}) for priority in (5, 0, 9, 5, 9)]
    for job in jobs:
        deployment.queue.announce(job)
    assert deployment.queue.waiting() == 5
    assert taken(deployment, "cpu") == [jobs[number].id for number in (2, 4, 0, 3, 1)]
    assert deployment.queue.waiting() == 0


def test_an_emptied_redis_takes_the_next_announcement_all_the_same(deployment: Deployment, valkey: redis.Redis) -> None:
    deployment.queue.announce(record())
    valkey.flushdb()
    after = record()
    deployment.queue.announce(after)
    assert taken(deployment, "cpu") == [after.id]


def taken(deployment: Deployment, queue: str) -> list[str]:
    """The ids that a worker on a queue would take, in that order."""
    found: list[str] = []
    with celery_app(deployment.settings).connection_for_read() as connection, connection.SimpleQueue(queue) as waiting:
        while True:
            try:
                message = waiting.get(timeout=0.2)
            except Empty:
                return found
            message.ack()
            found.append(message.payload[0][0])


def test_no_change_is_lost_when_many_write_at_once(settings: Settings, deployment: Deployment) -> None:
    job = record()
    deployment.jobs.submit(job)
    stores = [Deployment.connect(settings).jobs for _ in range(4)]

    def count(store_index: int) -> None:
        for _ in range(25):
            stores[store_index].update(job.id, lambda found: found.model_copy(update={"attempts": found.attempts + 1}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert deployment.jobs.get(job.id).attempts == 100


def test_cancelling_ends_a_queued_job_and_marks_a_running_one(deployment: Deployment) -> None:
    queued, running = record(), record()
    for job in (queued, running):
        deployment.jobs.submit(job)
    deployment.jobs.update(running.id, lambda found: found.model_copy(update={"status": Status.RUNNING}))
    assert deployment.jobs.cancel(queued.id).status is Status.CANCELLED
    marked = deployment.jobs.cancel(running.id)
    assert (marked.status, marked.cancel_requested) == (Status.RUNNING, True)
    with pytest.raises(ConflictError, match="already ended: cancelled"):
        deployment.jobs.cancel(queued.id)
    assert deployment.jobs.open_ids() == [running.id]


def test_an_emptied_redis_does_not_take_what_a_study_made(deployment: Deployment, valkey: redis.Redis) -> None:
    study, _ = study_record((Status.QUEUED, Status.QUEUED))
    unmade = [one.model_copy(update={"made": False}) for one in study.members]
    deployment.studies.submit(study.model_copy(update={"members": unmade}))
    trial = TrialRecord(name="x", task="a", kind="all", layers=[1], rank=8, analysis_id="an_x", made=True)
    deployment.studies.update(
        study.id, lambda found: found.model_copy(update={"members": study.members, "trials": [trial]})
    )
    valkey.flushdb()
    assert deployment.studies.restore() == 1
    found = deployment.studies.get(study.id)
    assert (found.members, found.trials) == (study.members, [trial])


def test_pages_hold_every_job_once_newest_first(deployment: Deployment) -> None:
    made = [record(age_seconds=60 - index) for index in range(23)]
    twins = [made[5].model_copy(update={"id": f"an_{index}"}) for index in range(4)]
    for job in [*made, *twins]:
        deployment.jobs.submit(job)
    seen, cursor = [], None
    while True:
        page, cursor = deployment.listing.page("default", 5, cursor)
        assert len(page) == 5 or cursor is None
        seen += page
        if cursor is None:
            break
    assert sorted(job.id for job in seen) == sorted(job.id for job in [*made, *twins])
    assert [job.created_at for job in seen] == sorted((job.created_at for job in seen), reverse=True)
    with pytest.raises(InputError, match="use one that a list has returned"):
        deployment.listing.page("default", 5, "bm9uc2Vuc2U")


def test_pages_can_be_of_one_status(deployment: Deployment) -> None:
    made = [record(age_seconds=index) for index in range(9)]
    for job in made:
        deployment.jobs.submit(job)
    for job in made[::4]:
        deployment.jobs.update(job.id, lambda found: found.ended(Status.FAILED, PROBLEM))
    first, cursor = deployment.listing.page("default", 2, None, Wanted(status=Status.FAILED))
    rest, end = deployment.listing.page("default", 2, cursor, Wanted(status=Status.FAILED))
    assert [job.id for job in [*first, *rest]] == [job.id for job in made[::4]]
    assert end is None


def test_a_lease_belongs_to_one_worker_until_it_is_given_back_or_runs_out(
    deployment: Deployment, valkey: redis.Redis
) -> None:
    leases = deployment.leases
    assert leases.take("an_x", "one", 60)
    assert not leases.take("an_x", "two", 60)
    assert not leases.renew("an_x", "two", 60)
    leases.release("an_x", "two")
    assert leases.held("an_x")
    assert leases.renew("an_x", "one", 60)
    leases.release("an_x", "one")
    assert leases.take("an_x", "two", 60)


def test_a_report_comes_from_redis_and_without_it_from_s3(deployment: Deployment, valkey: redis.Redis) -> None:
    deployment.reports.put(Owned("default", "an_r"), "md", b"# report")
    assert deployment.reports.get(Owned("default", "an_r"), "md") == (b"# report", True)
    valkey.flushdb()
    assert deployment.reports.get(Owned("default", "an_r"), "md") == (b"# report", False)
    assert deployment.reports.get(Owned("default", "an_r"), "md") == (b"# report", True)
    with pytest.raises(
        NotFoundError, match=r"s3://integration/tenants/default/reports/an_r/report\.html does not exist"
    ):
        deployment.reports.get(Owned("default", "an_r"), "html")


def test_objects_are_written_listed_and_read_in_part(deployment: Deployment, tmp_path: Path) -> None:
    blobs = deployment.blobs
    blobs.put("dir/a", b"0123456789", "text/plain")
    (tmp_path / "big").write_bytes(b"x" * (9 << 20))
    blobs.put_file("dir/b", tmp_path / "big")
    assert b"".join(blobs.chunks("dir/b", 1 << 20)) == b"x" * (9 << 20)
    assert blobs.get("dir/a", start=2, length=3) == b"234"
    assert [(blob.key, blob.size) for blob in blobs.list("dir/")] == [("dir/a", 10), ("dir/b", 9 << 20)]
    assert blobs.head("dir/a").etag == blobs.list("dir/a")[0].etag
    with pytest.raises(NotFoundError):
        blobs.of_bucket("no-such-bucket").get("x")


def test_servers_that_are_away_are_said_to_be_away(settings: Settings) -> None:
    port = choose({"nobody": 0})["nobody"]
    away = Deployment.connect(
        settings.model_copy(
            update={"redis_url": f"redis://{LOOPBACK}:{port}/0", "s3_endpoint": f"http://{LOOPBACK}:{port}"}
        )
    )
    with pytest.raises(UnavailableError, match="S3 could not be reached"):
        away.blobs.check()
    with pytest.raises(UnavailableError, match="Redis could not be reached"):
        away.jobs.check()


def test_credentials_that_are_refused_read_nothing(settings: Settings, deployment: Deployment) -> None:
    from pydantic import SecretStr

    deployment.blobs.put("secret", b"x", "text/plain")
    stranger = BlobStore.connect(settings.model_copy(update={"s3_secret_key": SecretStr("wrong")}))
    with pytest.raises(DeniedError, match="cannot be read with the service's credentials"):
        stranger.get("secret")


def test_workers_tell_what_they_have_while_they_live(deployment: Deployment, valkey: redis.Redis) -> None:
    small = Capacity(cores=2, memory_bytes=8 << 30, scratch_bytes=1 << 40)
    deployment.workers.announce("one", ["cpu"], 60, small)
    deployment.workers.announce("two", ["cpu"], 60)  # of a version that told nothing
    deployment.workers.announce("dead", ["cpu"], -1, small)
    valkey.hset(key_names.CAPACITIES, "two", '{"another": "version"}')
    assert deployment.workers.capacities("cpu") == [small]
    assert valkey.hkeys(key_names.CAPACITIES) == [b"one"]
    deployment.workers.withdraw("one", ["cpu"])
    assert deployment.workers.capacities("cpu") == []
