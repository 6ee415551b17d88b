"""What a worker tells of itself, and which scratch it sweeps away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.builders.records import record
from tests.builders.stores import MemoryDeployment
from workers.presence import Presence


@pytest.fixture
def made(tmp_path: Path) -> MemoryDeployment:
    return MemoryDeployment(tmp_path, record(analysis_id="an_1"), lease_seconds=60)


@pytest.fixture
def presence(made: MemoryDeployment) -> Presence:
    return Presence(made.given, "host:1", ("gpu", "cpu"))


def test_a_worker_is_known_from_its_first_look_until_it_stops(made: MemoryDeployment, presence: Presence) -> None:
    presence.look()
    assert made.workers.live == {"host:1": ["gpu", "cpu"]}
    presence.start()
    presence.stop()
    assert made.workers.live == {}


def test_only_old_scratch_of_jobs_that_nobody_holds_is_swept_away(made: MemoryDeployment, presence: Presence) -> None:
    made.leases.holders["an_held"] = "somebody"
    before = time.time() - 4 * 60
    for name, age in (("an_old.a", before - 10), ("an_held.b", before - 10), ("an_new.c", before + 10)):
        folder = made.settings.scratch / name
        folder.mkdir(parents=True)
        (folder / "rows").touch()
        os.utime(folder, (age, age))
    presence.look()
    assert sorted(folder.name for folder in made.settings.scratch.iterdir()) == ["an_held.b", "an_new.c"]
