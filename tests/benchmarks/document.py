"""Writes what a benchmark measured into docs/benchmarks.md, with the machine and the date."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `make bench…`; every figure comes from one run on the machine that is named beside it. Compare figures within
a section, not between machines.
"""


def publish(title: str, body: str) -> None:
    """Puts a section in the place of the one with the same title, or at the end."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else HEAD
    section = f"## {title}\n\n{machine()}\n\n{body.strip()}\n"
    found = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    known = found.search(text) is not None
    text = found.sub(lambda _: section + "\n", text) if known else f"{text.rstrip()}\n\n{section}"
    DOCUMENT.write_text(text.rstrip() + "\n", encoding="utf-8")


def machine() -> str:
    """What it ran on, and when."""
    names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {names[0] if names else platform.processor()}, {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, {device}; Python {platform.python_version()}, torch {torch.__version__}."
    )
