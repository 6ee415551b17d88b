"""Writes what a benchmark measured into docs/benchmarks.md, with the machine and the date."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.machine import machine

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
