"""Stages that a preliminary report does not include yet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PendingStage:
    """A stage that a preliminary report does not include yet."""

    stage: str
    fields: list[str]
    expected_seconds: float | None = None
