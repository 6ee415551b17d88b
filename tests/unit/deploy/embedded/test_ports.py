from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from deploy.embedded.ports import LOOPBACK, choose, is_free


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as held:
        held.bind((LOOPBACK, 0))
        held.listen()
        yield int(held.getsockname()[1])


@pytest.fixture
def free() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def test_a_port_is_free_until_somebody_listens(taken: int, free: int) -> None:
    assert is_free(free)
    assert not is_free(taken)


def test_asking_takes_no_port(free: int) -> None:
    assert is_free(free)
    assert is_free(free)
    assert choose({"a": free}) == choose({"a": free}) == {"a": free}


def test_a_port_that_is_free_is_kept_and_one_that_is_taken_replaced(taken: int, free: int) -> None:
    chosen = choose({"a": taken, "b": free})
    assert chosen["b"] == free
    assert chosen["a"] not in (taken, free)
    assert chosen["a"] > 1024


def test_two_that_prefer_one_taken_port_get_different_ones(taken: int) -> None:
    chosen = choose({"a": taken, "b": taken, "c": taken})
    assert len({taken, *chosen.values()}) == 4


def test_two_that_prefer_one_free_port_get_different_ones(free: int) -> None:
    chosen = choose({"a": free, "b": free})
    assert chosen["a"] == free
    assert chosen["b"] != free


def test_zero_prefers_none() -> None:
    chosen = choose({"a": 0, "b": 0})
    assert 0 not in chosen.values()
    assert chosen["a"] != chosen["b"]


def test_a_port_that_is_none_is_an_error_and_not_replaced() -> None:
    with pytest.raises(OverflowError):
        choose({"a": 65_536})
