"""The right to run a job, and the signs of life of whoever has it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


class Pulse:
    """When a job last said that it goes on."""

    def __init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        """It does."""
        self._at = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """Since the last beat."""
        return time.monotonic() - self._at


@dataclass(frozen=True)
class Lease:
    """The right to run a job: `lost` is set when it may have gone to another worker."""

    owner: str
    lost: threading.Event = field(default_factory=threading.Event)
    pulse: Pulse = field(default_factory=Pulse)
