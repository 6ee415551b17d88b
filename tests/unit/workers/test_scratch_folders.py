"""Folders of jobs that run, and of workers that died."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.scratch_folders import held, left_behind, remove

HOLD = """
import sys, time
from pathlib import Path
from workers.scratch_folders import held
with held(Path(sys.argv[1])) as folder:
    folder.mkdir()
    print("held", flush=True)
    time.sleep(60)
"""


def aged(path: Path) -> None:
    os.utime(path, (1, 1))


def test_a_folder_in_use_is_not_left_behind_however_old_it_is(tmp_path: Path) -> None:
    with held(tmp_path / "scratch" / "an_1.a") as folder:
        folder.mkdir()
        (folder / "rows").touch()
        for path in (tmp_path / "scratch").iterdir():
            aged(path)
        assert list(left_behind(tmp_path / "scratch", time.time())) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_raises_inside_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with held(tmp_path / "an_1.a") as folder:
            folder.mkdir()
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_left_behind_and_goes_with_its_lock(tmp_path: Path) -> None:
    folder = tmp_path / "an_1.a"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert list(left_behind(tmp_path, time.time() + 60)) == []
        process.kill()
    found = set(left_behind(tmp_path, time.time() + 60))
    assert found == {folder}
    assert list(left_behind(tmp_path, 1.0)) == []
    remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert list(left_behind(tmp_path / "none", time.time())) == []


def test_where_nothing_can_be_written_the_job_is_let_in_to_fail_by_itself(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("no folder")
    with held(tmp_path / "scratch" / "an_1.a") as folder, pytest.raises(OSError, match=r"Not a directory|File exists"):
        folder.mkdir(parents=True)
    assert (tmp_path / "scratch").read_text() == "no folder"
