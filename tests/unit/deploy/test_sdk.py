from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from deploy import sdk
from layerdrift import AsyncClient, Client


def test_the_synchronous_client_is_what_the_asynchronous_one_gives() -> None:
    assert sdk.main(check=True) == 0


def test_an_edit_of_either_alone_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = tmp_path / "client.py"
    edited.write_text(sdk.GENERATED.read_text() + "# by hand\n")
    monkeypatch.setattr(sdk, "GENERATED", edited)
    assert sdk.main(check=True) == 1
    assert sdk.main(check=False) == 0
    assert sdk.main(check=True) == 0


def test_both_have_the_same_calls_with_the_same_parameters() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        public = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(one).parameters) for name, one in public if not name.startswith("_")}

    assert calls(Client) == calls(AsyncClient)
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)
