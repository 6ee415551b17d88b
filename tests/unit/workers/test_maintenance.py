"""Maintenance as a process: it starts without torch, says that it runs, and ends when it is asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

MODULE = """
import sys
from workers import maintenance
assert not {"torch", "transformers", "numpy"} & set(sys.modules), "an image without them runs this"
maintenance.main()
"""


def test_it_runs_without_servers_and_ends_when_asked() -> None:
    """Redis and S3 may come later than it."""
    nobody = {"LAYERDRIFT_REDIS_URL": "redis://127.0.0.1:9/0", "LAYERDRIFT_S3_ENDPOINT": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [sys.executable, "-c", MODULE],
        env={**os.environ, **nobody, "LAYERDRIFT_LOG_FORMAT": "plain"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "reconciler failed, and tries again" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert any("maintenance runs: reconciler, webhook-dispatcher, usage-keeper, retention" in line for line in said), (
        said
    )
