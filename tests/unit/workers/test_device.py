"""What a process computes with stays the same while it works."""

from __future__ import annotations

import os
import subprocess
import sys

STARTED = """
import torch
from workers.analysis.packing import packed
from workers.models.device import start_threads
{start}
sums = torch.ones(2, 3, 3, dtype=torch.float64)
packed(sums, sums, sums)
print(torch.get_num_threads())
"""


def threads_after(start: str) -> int:
    """Torch's threads once a compiled loop ran in a process of its own, which began with one."""
    numbers = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    environment = os.environ | numbers | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STARTED.format(start=start)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


def test_compiled_loops_leave_torch_the_threads_that_it_had() -> None:
    assert threads_after("start_threads()") == 1
    assert threads_after("") == 2  # what it is there for
