"""Signs of life."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workers import lease
from workers.lease import Lease


def test_silence_is_counted_from_the_last_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: now[0]))
    held = Lease("me")
    now[0] += 7
    assert held.pulse.silent_seconds == 7
    held.pulse.beat()
    assert held.pulse.silent_seconds == 0
    assert not held.lost.is_set()
