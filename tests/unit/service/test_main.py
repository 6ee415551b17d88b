from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from typing import cast

import pytest
from pydantic import SecretStr

from backends.api_keys import new_key
from backends.deployment import Deployment
from backends.observability import logs
from backends.settings import Settings
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.key import Scope
from service import main
from tests.builders.service import ServiceDeployment

SECRET = "a secret of twenty-four by"


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> ServiceDeployment:
    made = ServiceDeployment()
    monkeypatch.setattr(main, "Deployment", type("Connected", (), {"connect": lambda _: made.given}))
    return made


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Puts the handler back."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_without_a_key_it_binds_to_no_address_that_others_reach(deployment: ServiceDeployment, host: str) -> None:
    with pytest.raises(ValueError, match=f"LAYERDRIFT_HOST is {host}, and there is no API key.*LAYERDRIFT_ADMIN_KEY"):
        main._check_access(Settings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_without_a_key_it_warns_that_everybody_on_this_machine_is_let_in(
    deployment: ServiceDeployment, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    with caplog.at_level(logging.WARNING, "service.main"):
        main._check_access(Settings(host=host))
    assert ["everybody on this machine" in line for line in caplog.messages] == [True]


def test_with_a_key_it_binds_to_any_address_and_warns_of_nothing(
    deployment: ServiceDeployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.keys.create(new_key(scopes=[Scope.READ]))
    main._check_access(Settings(host="0.0.0.0"))
    assert caplog.messages == []


def test_the_key_of_the_settings_is_made_once_with_every_scope(deployment: ServiceDeployment) -> None:
    for _ in range(2):
        main._check_access(Settings(host="0.0.0.0", admin_key=SecretStr(SECRET)))
    ((secret, key),) = deployment.keys.by_secret.items()
    assert (secret, key.scopes) == (SECRET, frozenset(Scope))


@pytest.mark.parametrize("length", [0, 19])
def test_a_key_of_the_settings_that_is_too_short_ends_the_start(
    deployment: ServiceDeployment, monkeypatch: pytest.MonkeyPatch, sigterm: None, length: int
) -> None:
    monkeypatch.setenv("LAYERDRIFT_ADMIN_KEY", "k" * length)
    monkeypatch.setattr(logs, "configure", lambda _: None)
    with pytest.raises(SystemExit, match="the API does not start: LAYERDRIFT_ADMIN_KEY must have 20 characters"):
        main.main()
    assert deployment.keys.by_secret == {}


def test_stores_that_are_away_end_the_start_with_the_reason(monkeypatch: pytest.MonkeyPatch, sigterm: None) -> None:
    def connect(_: Settings) -> Deployment:
        raise UnavailableError("S3 could not be reached")

    monkeypatch.setattr(main, "Deployment", type("Away", (), {"connect": connect}))
    monkeypatch.setattr(logs, "configure", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert cast(str, ended.value.code) == "the API does not start: S3 could not be reached"


def test_sigterm_interrupts_the_main_process_and_ends_a_forked_one(
    monkeypatch: pytest.MonkeyPatch, sigterm: None
) -> None:
    main._stop_on_sigterm()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert isinstance(ended.value, SystemExit)
    assert ended.value.code == 0
