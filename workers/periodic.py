"""A thread that looks at something again and again, until it is stopped."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from typing import ClassVar

import redis

from layerdrift.contract.errors import LayerdriftError

PATIENCE_SECONDS = 5.0
"""A process that is to end waits so long for each of its threads."""

logger = logging.getLogger(__name__)


class Periodic(ABC):
    """One look at once and one after every `seconds`; what a look raises is logged, and the next one comes."""

    name: ClassVar[str]
    """Of the thread, and in the log."""

    seconds: ClassVar[float]

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Begins at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the look that is being made, or without it where that takes longer than PATIENCE_SECONDS."""
        self._stopped.set()
        self._thread.join(timeout=PATIENCE_SECONDS)

    def stopping(self) -> bool:
        """Whether a look that takes long is to end early."""
        return self._stopped.is_set()

    @abstractmethod
    def look(self) -> object:
        """What is done every time."""

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.look()
            except (redis.RedisError, LayerdriftError, OSError, ValueError) as error:
                logger.warning("%s failed, and tries again: %s", self.name, error)
            self._stopped.wait(self.seconds)
