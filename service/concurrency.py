"""How many long requests run at once: for each tenant, and in this process. Beyond that 429 says when to come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from layerdrift.contract.errors import RateError

RETRY_SECONDS = 5


class ConcurrencyLimit:
    """A limit on one kind of request, used from the event loop alone. what: for messages."""

    def __init__(self, what: str, of_tenant: int, in_all: int) -> None:
        self._what = what
        self._of_tenant = of_tenant
        self._in_all = in_all
        self._taken: Counter[str] = Counter()

    @contextmanager
    def held(self, tenant: str) -> Iterator[None]:
        """Counts one for the time of a block; RateError where there are as many as may be."""
        if self._taken[tenant] >= self._of_tenant:
            raise RateError(f"{self._of_tenant} {self._what} of this tenant are open already", RETRY_SECONDS)
        if self._taken.total() >= self._in_all:
            raise RateError(f"{self._in_all} {self._what} are open at this server already", RETRY_SECONDS)
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
