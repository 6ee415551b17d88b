"""What is read off the machine. Threads are looked at in tests/stages/test_threads.py, in processes of their own."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from workers.models.device import device_name, fast_dtype, give_memory_back, peak_memory_bytes


def test_the_peak_of_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("there is no /proc to compare with")
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory_bytes() == pytest.approx(1024 * int(peak.split()[1]), rel=0.1)


def test_memory_that_is_held_in_a_circle_is_given_back() -> None:
    class Held:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        held = Held()
        there = weakref.ref(held)
        del held
        assert there() is not None
        give_memory_back()
        assert there() is None
    finally:
        gc.enable()


def test_a_processor_is_named_and_multiplies_one_of_two_types() -> None:
    cpu = torch.device("cpu")
    assert device_name(cpu) == "cpu"
    one, other = torch.randn(2, 8, 8, dtype=torch.float32).to(fast_dtype(cpu))
    assert (one @ other).dtype in (torch.float32, torch.bfloat16)
