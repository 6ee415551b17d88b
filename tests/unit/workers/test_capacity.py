"""What a worker tells of its machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from workers.capacity import capacity, memory_bytes

WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("limit", "expected"), [("max", WHOLE), ("1048576", 1_048_576), (str(2 * WHOLE), WHOLE)])
def test_memory_is_that_of_the_container_where_it_is_less(limit: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert memory_bytes(tmp_path / "memory.max") == expected


def test_without_a_container_memory_is_the_machine(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path / "none") == WHOLE


def test_disk_is_told_before_the_scratch_is_there(tmp_path: Path) -> None:
    found = capacity(tmp_path / "home" / "scratch")
    assert found.scratch_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert found.cores >= 1
    assert found.memory_bytes > 0
