"""What this machine has for a job: what a worker tells of itself. Without torch: it is asked in the main process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from backends.estimates.capacity import Capacity
from workers.cores import cores
from workers.devices import device_memory_bytes, devices

CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")


def capacity(scratch: Path) -> Capacity:
    """Cores, memory, and free disk where jobs keep their files."""
    return Capacity(
        cores=cores(),
        memory_bytes=memory_bytes(),
        scratch_bytes=_free(scratch),
        device="cuda" if devices() else "cpu",
        device_memory_bytes=device_memory_bytes(),
    )


def memory_bytes(limit: Path = CGROUP_MEMORY) -> int:
    """Of the machine, and no more than its container may take."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = limit.read_text(encoding="utf-8").strip()
    except OSError:
        return whole
    return min(whole, int(allowed)) if allowed.isdecimal() else whole


def _free(folder: Path) -> int:
    """Of the file system that a folder is or will be on."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free
