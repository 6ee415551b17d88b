"""Paths that more than one module must know."""

from __future__ import annotations

UPLOADS = "/v1/uploads/"
"""The id follows; bodies that are PUT there are streamed, not read."""
