"""The thread that keeps usage."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from workers.usage_keeper import UsageKeeper


class Noted:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def save(self) -> int:
        self.asked.append("save")
        return 0

    def measure(self) -> bool:
        self.asked.append("measure")
        return False


def test_a_look_saves_what_was_counted_and_measures_what_is_stored() -> None:
    noted = Noted()
    UsageKeeper(cast(Any, SimpleNamespace(usage=noted))).look()
    assert noted.asked == ["save", "measure"]
