"""Threads of processes that load torch and numba."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_compiled_loops_leave_torch_the_threads_that_it_had() -> None:
    assert threads_after("start_threads()") == 1
    assert threads_after("") == 2  # what it is there for


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["default", "set", "policy"],
)
def test_threads_that_wait_sleep_unless_it_is_set_otherwise(given: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import workers.models.device, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    said = subprocess.run([sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == expected


def threads_after(start: str) -> int:
    """Torch's threads once a compiled loop ran in a process of its own, which began with one."""
    numbers = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    environment = os.environ | numbers | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STARTED.format(start=start)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


STARTED = """
import torch
from workers.analysis.packing import packed
from workers.models.device import start_threads
{start}
sums = torch.ones(2, 3, 3, dtype=torch.float64)
packed(sums, sums, sums)
print(torch.get_num_threads())
"""
