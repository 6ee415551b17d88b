"""What drift over all tokens of chats hides: whose words moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from layerdrift.contract.names import RoleName, ViewName
from workers.models.chats import TOKEN_ROLES
from workers.results.similarity import Similarity
from workers.results.warnings import ReportWarning

GAP, FACTOR = 0.01, 1.5
"""Drift over all tokens that exceeds the assistant's by so much, and by this factor, is mostly that of other words."""

_WHOSE: Final[dict[RoleName, str]] = {
    "template": "the chat template's tokens",
    "system": "the system prompt's tokens",
    "user": "the user's tokens",
    "tool": "the tools' tokens",
    "assistant": "the assistant's tokens",
}


def role_warnings(layers: Sequence[dict[ViewName, Similarity]]) -> list[ReportWarning]:
    """Says at which layer the drift over all tokens is that of other words than the assistant's."""
    worst: tuple[float, int] | None = None
    for layer, views in enumerate(layers):
        whole, own = _drift(views, "token"), _drift(views, "assistant")
        if whole is None or own is None or whole - own <= GAP or whole <= FACTOR * own:
            continue
        if worst is None or whole - own > worst[0]:
            worst = whole - own, layer
    if worst is None:
        return []
    layer = worst[1]
    views = layers[layer]
    by_role = {role: found for role in TOKEN_ROLES if (found := _drift(views, role)) is not None}
    most = max(by_role, key=lambda role: by_role[role])
    whole = _drift(views, "token") or 0.0
    if by_role[most] >= whole:
        why = f"it is mostly that of {_WHOSE[most]} ({by_role[most]:.3f})"
    else:
        why = "no role alone drifts as much: the roles moved relative to each other"
    message = (
        f"at layer {layer}, drift over all tokens is {whole:.3f}, but {by_role['assistant']:.3f} over the assistant's: "
        f"{why}. Read the numbers by role"
    )
    return [ReportWarning(code="drift_of_other_roles", message=message)]


def _drift(views: dict[ViewName, Similarity], view: ViewName) -> float | None:
    found = views.get(view)
    return None if found is None or found.cka.value is None else 1 - found.cka.value
