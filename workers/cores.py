"""How many processor cores this process may use. Without torch: it is asked before torch is loaded."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores(quota: Path = CGROUP_QUOTA) -> int:
    """The cores that the process may run on, and no more than the quota of its container."""
    allowed = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return allowed
    if limit == "max":
        return allowed
    return max(1, min(allowed, math.ceil(int(limit) / int(period))))
