"""The shown texts, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerdrift.contract.names import RoleName


@dataclass(frozen=True, kw_only=True)
class TokenLatents:
    """Most active latents of every token of a text: [layer][token], strongest first, as [index, activation]."""

    base: list[list[list[tuple[int, float]]]]
    tuned: list[list[list[tuple[int, float]]]]


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """One text, token by token."""

    text: str
    tokens: list[str]
    special: list[bool]
    drift: list[list[float]]
    roles: list[RoleName] | None = None
    latents: TokenLatents | None = None


@dataclass(frozen=True, kw_only=True)
class TokenDrift:
    """Token-level drift in the shown texts."""

    source: Literal["request", "dataset"]
    texts: list[TokenText]
