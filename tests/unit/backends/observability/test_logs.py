from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from backends.observability import logs

LOGGER = logging.getLogger("layerdrift.test")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What is logged goes where it went before, once a test is over."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("httpx", "botocore")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def test_a_line_is_one_json_object_with_what_was_bound(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    with logs.bound(job_id="an_x"):
        LOGGER.warning("stage %s\ntook long", "sae")
    LOGGER.info("over")
    first, second = capsys.readouterr().err.splitlines()
    line = json.loads(first)
    assert (line["event"], line["level"], line["logger"]) == ("stage sae\ntook long", "warning", "layerdrift.test")
    assert line["job_id"] == "an_x"
    assert line["timestamp"].endswith("Z")
    assert "job_id" not in json.loads(second)


def test_a_traceback_stays_within_the_line_of_its_event(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    try:
        raise RuntimeError("it broke")
    except RuntimeError:
        LOGGER.exception("a job failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: it broke" in json.loads(line)["exception"]


def test_for_people_too_nothing_that_is_quoted_begins_a_line_or_moves_the_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("plain")
    with logs.bound(name="x\r\x1b[2Jfaked"):
        LOGGER.info("read %s", "a\n2026-01-01 [error] all is lost")
    (line,) = capsys.readouterr().err.splitlines()
    assert r"a\n2026-01-01 [error] all is lost" in line
    assert "\x1b[2J" not in line
    assert r"x\r\x1b[2Jfaked" in line.replace("\\\\", "\\")


def test_for_people_a_traceback_has_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("plain")
    try:
        raise RuntimeError("it broke")
    except RuntimeError:
        LOGGER.exception("a job failed")
    assert len(capsys.readouterr().err.splitlines()) > 3


def test_chatter_of_libraries_is_left_out_and_their_warnings_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    for name in ("httpx", "botocore.auth"):
        logging.getLogger(name).info("GET https://bucket/object?signature=secret")
        logging.getLogger(name).warning("retried")
    LOGGER.debug("a detail")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["retried"] * 2


def test_configuring_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("plain")
    logs.configure("json")
    LOGGER.info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1
