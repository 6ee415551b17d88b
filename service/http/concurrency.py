"""How many long requests run at once: for each client, and in this process. Beyond that 429 says when to come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from layerdrift.contract.errors import RateError

RETRY_SECONDS = 5


class ConcurrencyLimit:
    """A limit on one kind of request, used from the event loop alone. what: for messages."""

    def __init__(self, what: str, of_client: int, in_all: int) -> None:
        self._what = what
        self._of_client = of_client
        self._in_all = in_all
        self._taken: Counter[str] = Counter()

    @contextmanager
    def held(self, client: str) -> Iterator[None]:
        """Counts one of a client, by its tenant or address, for the time of a block.

        Raises:
            RateError: there are as many as may be.
        """
        if self._taken[client] >= self._of_client:
            raise RateError(f"this client already has {self._of_client} {self._what} open", RETRY_SECONDS)
        if self._taken.total() >= self._in_all:
            raise RateError(f"this server already has {self._in_all} {self._what} open", RETRY_SECONDS)
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
