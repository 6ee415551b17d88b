"""Pictures themselves take Chromium and a finished demo; here is what is said without them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.docs import screenshots


@pytest.mark.parametrize(
    ("chromium", "finished"),
    [(None, True), ("/usr/bin/chromium", False), (None, False)],
    ids=["no chromium", "no demo", "neither"],
)
def test_without_chromium_or_a_finished_demo_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    chromium: str | None,
    finished: bool,
) -> None:
    def start(*_: object) -> NoReturn:
        pytest.fail("it has started")

    if finished:
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "report.html").touch()
    monkeypatch.setenv("LAYERDRIFT_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: chromium)
    monkeypatch.setattr(screenshots, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(screenshots, "sync_playwright", start)
    monkeypatch.setattr(screenshots, "Stack", start)
    assert screenshots.main() == 1
    assert capsys.readouterr().err == "this needs chromium and a finished `make demo`\n"
    assert not (tmp_path / "images").exists()
