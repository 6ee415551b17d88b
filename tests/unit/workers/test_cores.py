from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.cores import cores


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)])
def test_a_container_has_the_cores_of_its_quota(tmp_path: Path, quota: str, expected: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    allowed = len(os.sched_getaffinity(0))
    assert cores(file) == min(allowed, expected or allowed)


def test_without_a_quota_it_has_those_it_may_run_on(tmp_path: Path) -> None:
    assert cores(tmp_path / "none") == len(os.sched_getaffinity(0))
