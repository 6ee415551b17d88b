"""What generated pages say of their machine."""

from __future__ import annotations

import os
import platform
import re

from deploy.machine import machine


def test_it_names_date_cores_memory_and_versions() -> None:
    said = machine()
    assert re.match(r"\d{4}-\d{2}-\d{2}; ", said)
    assert f"{os.cpu_count()} cores" in said
    assert f"Python {platform.python_version()}" in said
