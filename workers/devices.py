"""How many devices this machine has for jobs, and which one is a process's own. Without torch in this process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

COUNT = "LAYERDRIFT_DEVICES"
"""What the main process found, for its children; set it to use fewer devices."""

MEMORY = "LAYERDRIFT_DEVICE_MEMORY"
"""Bytes of the smallest of them, as the main process found it."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

_NODES = ("nvidia[0-9]*", "dxg")
"""Device files without which torch need not be asked: of a driver on Linux, and of Windows' own Linux."""

_QUESTION = """
import torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(count, min((torch.cuda.get_device_properties(one).total_memory for one in range(count)), default=0))
"""
_SECONDS = 120.0

logger = logging.getLogger(__name__)


def devices(nodes: Path = Path("/dev")) -> int:
    """CUDA devices that torch can use; 0: jobs run on the CPU.

    A driver without a torch that is made for it is no device, so torch is asked, in a process that ends with its
    memory. The answer is kept in the environment, where children find it.
    """
    told = os.environ.get(COUNT)
    if told is None:
        there = any(any(nodes.glob(name)) for name in _NODES)
        count, memory = _asked() if there else (0, 0)
        told = os.environ[COUNT] = str(count)
        os.environ.setdefault(MEMORY, str(memory))
    return int(told)


def device_memory_bytes() -> int | None:
    """Of the smallest CUDA device; None without one, and where it is not known."""
    return int(os.environ.get(MEMORY, "0")) or None if devices() else None


def _asked() -> tuple[int, int]:
    """How many devices there are, and the memory of the smallest."""
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _QUESTION], capture_output=True, text=True, check=True, timeout=_SECONDS
        )
        count, memory = map(int, answer.stdout.split())
        return count, memory
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        logger.warning("torch could not be asked for devices, so jobs run on the CPU: %s", error)
        return 0, 0


def take_one(process: int) -> None:
    """Leaves this process one device, before torch is loaded in it.

    Args:
        process: its number in the pool, from 0; with more processes than devices some share one.
    """
    count = devices()
    if not count:
        return
    visible = [name for name in os.environ.get(VISIBLE, "").split(",") if name] or list(map(str, range(count)))
    os.environ[VISIBLE] = visible[process % len(visible)]
