"""What a job writes of its progress, when it stops, and what it says of the time that is left."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import redis

from layerdrift.contract.analysis import Progress, Stage, StageName, Status
from layerdrift.contract.errors import UnavailableError
from tests.builders.records import record
from tests.builders.stores import MemoryJobs
from workers import progress_writer
from workers.lease import Lease
from workers.progress_writer import WRITE_EVERY_SECONDS, Cancelled, LeaseLost, ProgressWriter, StageFailed

STAGES = [StageName.RESOLVE, StageName.COMPARE, StageName.SAE, StageName.CAUSAL]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress_writer, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


@pytest.fixture
def jobs(clock: Clock) -> MemoryJobs:
    return MemoryJobs(record(analysis_id="an_1").model_copy(update={"status": Status.RUNNING}))


@pytest.fixture
def lease() -> Lease:
    return Lease("me")


def writer_of(jobs: MemoryJobs, lease: Lease, **expected: float) -> ProgressWriter:
    return ProgressWriter(jobs, "an_1", STAGES, lease, {StageName(name): value for name, value in expected.items()})


def written(jobs: MemoryJobs) -> Progress:
    return jobs.get("an_1").progress


def first_stage(jobs: MemoryJobs) -> Stage:
    return written(jobs).stages[0]


def test_a_stage_is_written_when_it_begins_and_when_it_ends(jobs: MemoryJobs, lease: Lease, clock: Clock) -> None:
    writer = writer_of(jobs, lease)
    with writer.stage(StageName.RESOLVE):
        assert (first_stage(jobs).status, first_stage(jobs).fraction) == ("running", 0.0)
        clock.now += 2.5
    assert (first_stage(jobs).status, first_stage(jobs).fraction) == ("succeeded", 1.0)
    assert (written(jobs).stage, written(jobs).fraction) == ("resolve", 0.25)
    assert writer.seconds == {"resolve": 2.5}


def test_progress_between_two_writes_waits_for_the_next_one(jobs: MemoryJobs, lease: Lease, clock: Clock) -> None:
    writer = writer_of(jobs, lease)
    with writer.stage(StageName.RESOLVE):
        writer.on_progress(0.25)
        assert first_stage(jobs).fraction == 0.0
        assert writer.progress().stages[0].fraction == 0.25
        clock.now += WRITE_EVERY_SECONDS
        writer.on_progress(0.5)
        assert first_stage(jobs).fraction == 0.5


@pytest.mark.parametrize(("told", "shown"), [(-0.5, 0.0), (1.5, 1.0), (0.3, 0.3)])
def test_a_fraction_stays_between_0_and_1(jobs: MemoryJobs, lease: Lease, told: float, shown: float) -> None:
    writer = writer_of(jobs, lease)
    with writer.stage(StageName.RESOLVE):
        writer.on_progress(told)
        assert writer.progress().stages[0].fraction == shown


def test_numbers_that_are_not_finite_are_left_out_and_a_detail_stays_until_the_next(
    jobs: MemoryJobs, lease: Lease
) -> None:
    writer = writer_of(jobs, lease)
    with writer.stage(StageName.RESOLVE):
        writer.on_progress(0.1, "step 1", {"step": 1.0, "loss": math.nan, "fvu_highest": math.inf})
        writer.on_progress(0.2)
        stage = writer.progress().stages[0]
        assert (stage.detail, stage.numbers) == ("step 1", {})
        writer.on_progress(0.2, numbers={"step": 2.0, "loss": -math.inf})
        assert writer.progress().stages[0].numbers == {"step": 2.0}


def test_an_error_in_a_stage_comes_with_the_stage_and_its_cause(jobs: MemoryJobs, lease: Lease) -> None:
    writer = writer_of(jobs, lease)
    with pytest.raises(StageFailed) as raised, writer.stage(StageName.COMPARE):
        raise ZeroDivisionError
    assert raised.value.stage is StageName.COMPARE
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert [stage.status for stage in writer.progress().stages] == ["pending", "failed", "pending", "pending"]
    assert writer.seconds == {}


def test_a_job_that_was_asked_to_stop_stops_at_its_next_write(jobs: MemoryJobs, lease: Lease, clock: Clock) -> None:
    writer = writer_of(jobs, lease)

    def ask_and_go_on() -> None:
        jobs.cancel("an_1")
        writer.on_progress(0.2)  # not written, so nobody asks
        clock.now += WRITE_EVERY_SECONDS
        writer.on_progress(0.3)

    with pytest.raises(Cancelled), writer.stage(StageName.RESOLVE):
        ask_and_go_on()
    stage = writer.progress().stages[0]
    assert (stage.status, stage.fraction) == ("cancelled", 0.3)


def test_a_worker_that_lost_its_lease_writes_nothing_more(jobs: MemoryJobs, lease: Lease, clock: Clock) -> None:
    writer = writer_of(jobs, lease)

    def lose_and_go_on() -> None:
        lease.lost.set()
        clock.now += WRITE_EVERY_SECONDS
        writer.on_progress(0.5)

    with pytest.raises(LeaseLost), writer.stage(StageName.RESOLVE):
        lose_and_go_on()
    assert jobs.updates == 1
    assert first_stage(jobs).fraction == 0.0
    with pytest.raises(LeaseLost), writer.stage(StageName.COMPARE):
        pass
    assert jobs.updates == 1


@pytest.mark.parametrize("error", [redis.ConnectionError("gone"), UnavailableError("gone")])
def test_a_progress_that_cannot_be_written_stops_no_job(jobs: MemoryJobs, lease: Lease, error: Exception) -> None:
    writer = writer_of(jobs, lease)
    jobs.fails = error
    with writer.stage(StageName.RESOLVE):
        writer.on_progress(0.5)
    assert writer.progress().stages[0].status == "succeeded"


def test_the_progress_of_a_job_that_has_ended_is_left_as_it_is(jobs: MemoryJobs, lease: Lease) -> None:
    jobs.update("an_1", lambda found: found.ended(Status.FAILED))
    before = jobs.get("an_1")
    with writer_of(jobs, lease).stage(StageName.RESOLVE):
        pass
    assert jobs.get("an_1") == before


def test_pending_stages_are_those_after_the_one_that_runs_and_add_to_the_report(jobs: MemoryJobs, lease: Lease) -> None:
    writer = writer_of(jobs, lease, sae=12.345)
    with writer.stage(StageName.COMPARE):
        assert [(one.stage, one.expected_seconds) for one in writer.pending()] == [("sae", 12.3), ("causal", None)]
    with writer.stage(StageName.SAE):
        assert [one.stage for one in writer.pending()] == ["causal"]


def test_without_an_estimate_nothing_is_said_of_the_time_left(jobs: MemoryJobs, lease: Lease) -> None:
    writer = writer_of(jobs, lease)
    with writer.stage(StageName.RESOLVE):
        assert writer.progress().seconds_left is None


def test_the_time_left_follows_the_estimate_first_and_then_the_stages_own_pace(
    jobs: MemoryJobs, lease: Lease, clock: Clock
) -> None:
    writer = writer_of(jobs, lease, compare=100.0, sae=40.0, causal=10.0)
    with writer.stage(StageName.COMPARE):
        assert writer.progress().seconds_left == 150.0
        clock.now += 8.0
        writer.on_progress(0.1)
        assert writer.progress().seconds_left == 140.0
        writer.on_progress(0.4)  # 8 s for 0.4 of it: 12 s for the rest, and 50 s of later stages
        assert writer.progress().seconds_left == 62.0
    assert writer.progress().seconds_left == 50.0


def test_every_word_of_a_stage_is_a_beat_of_the_lease(jobs: MemoryJobs, lease: Lease) -> None:
    beats = []
    lease.pulse.beat = lambda: beats.append(1)  # type: ignore[method-assign]
    writer = writer_of(jobs, lease)
    with writer.stage(StageName.RESOLVE):
        writer.on_progress(0.5)
        writer.on_progress(0.6)
    assert len(beats) == 3
