from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest

from layerdrift.contract.errors import RateError
from service.http.concurrency import RETRY_SECONDS, ConcurrencyLimit


def test_a_client_has_no_more_than_its_share_and_leaves_others_theirs() -> None:
    limit = ConcurrencyLimit("uploads", of_client=1, in_all=2)
    with limit.held("a"):
        with pytest.raises(RateError, match="this client already has 1 uploads open") as refused, limit.held("a"):
            pass
        assert refused.value.retry_after == RETRY_SECONDS
        with limit.held("b"), pytest.raises(RateError, match="this server already has 2 uploads"), limit.held("c"):
            pass


def test_what_was_refused_does_not_count() -> None:
    limit = ConcurrencyLimit("uploads", of_client=1, in_all=2)
    with limit.held("a"):
        for _ in range(5):
            with suppress(RateError), limit.held("a"):
                pytest.fail("it was let in")
        with limit.held("b"):
            pass


def test_a_request_that_fails_gives_its_place_back() -> None:
    limit = ConcurrencyLimit("uploads", of_client=1, in_all=1)
    for client in ("a", "a", "b"):
        with suppress(ZeroDivisionError), limit.held(client):
            raise ZeroDivisionError
    with limit.held("a"):
        pass


def test_places_are_given_back_one_by_one() -> None:
    limit = ConcurrencyLimit("uploads", of_client=2, in_all=9)
    with ExitStack() as first, limit.held("a"):
        first.enter_context(limit.held("a"))
        first.close()
        with limit.held("a"), pytest.raises(RateError), limit.held("a"):
            pass


def test_clients_that_have_gone_take_no_memory() -> None:
    limit = ConcurrencyLimit("uploads", of_client=2, in_all=9)
    for number in range(100):
        with limit.held(f"10.0.0.{number}"):
            assert len(limit._taken) == 1
    assert not limit._taken
