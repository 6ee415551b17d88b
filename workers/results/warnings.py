"""What to consider before trusting a number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportWarning:
    """A caveat to consider before trusting a number."""

    code: str
    message: str
