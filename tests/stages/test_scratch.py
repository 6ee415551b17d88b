"""The scratch at ten times the tokens that fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FREED = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "134217728", "MALLOC_ARENA_MAX": "2"}
"""As workers are started: what they free goes back to the system."""


@pytest.mark.slow
def test_ten_times_the_tokens_that_fit_take_no_more_disk_or_memory(tmp_path: Path) -> None:
    """Offered and trained on; peaks of processes of their own. All rows would take 400 MB in memory or on disk."""
    disk, memory = {}, {}
    for times in (2, 20):  # twice what fits, so that both have had every shard in memory
        command = [sys.executable, "-c", TEN_TIMES, str(tmp_path / str(times)), str(times)]
        environment = {**os.environ, **FREED, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        disk[times], memory[times] = map(int, done.stdout.split())
    assert disk[20] == disk[2] <= 20_000 * 8 * 128 * 2 * 1.01
    assert memory[20] <= memory[2] + 30_000


TEN_TIMES = """
import re, sys, torch  # VmHWM: getrusage counts what the parent had before exec
from pathlib import Path
from workers.scratch import ActivationStore
store = ActivationStore(Path(sys.argv[1]), max_rows=20_000)
for _ in range(10 * int(sys.argv[2])):
    store.add(torch.rand(8, 2_000, 128))
for _ in store.training_batches(10 * int(sys.argv[2]), 1024, torch.Generator().manual_seed(0)):
    pass
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(sum(path.stat().st_size for path in store.folder.iterdir()), peak)
"""
