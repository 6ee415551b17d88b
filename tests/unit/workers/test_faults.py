"""A broken device ends its process; other errors do not."""

from __future__ import annotations

import pytest

from workers import faults


def test_a_device_fault_ends_the_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(faults, "end_process", lambda: ended.append(True))
    with faults.device_watched("an_1"):
        raise faults.DeviceFault from RuntimeError("CUDA error: device lost")
    assert ended == [True]
    assert "an_1" in caplog.text


def test_any_other_error_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "end_process", lambda: pytest.fail("the process goes on"))
    with pytest.raises(ValueError, match="one of ours"), faults.device_watched("an_1"):
        raise ValueError("one of ours")


def test_a_lost_worker_is_told_with_what_to_do() -> None:
    problem = faults.worker_lost(3)
    assert (problem.title, problem.status) == ("Worker lost", 500)
    assert problem.detail.startswith("3 workers took this job")
