"""Names of version 1 of reports and stored requests, and what they are called now.

Stored documents are read under their new names; a new request with an old name is refused like any unknown field.
"""

from __future__ import annotations

from typing import Any, Final

FIELDS: Final = {
    "lenses": "comparisons",
    "nulls": "noise_floors",
    "nothing_left": "random_weights_drift",
    "left_out_first": "excluded_first_tokens",
    "left_out_outliers": "excluded_outliers",
    "left_out_share": "excluded_share",
    "unread_share": "truncated_share",
    "leans": "label_association",
}
WARNING_CODES: Final = {
    "null_not_computed": "noise_floor_not_computed",
    "left_out_tokens": "excluded_tokens",
    "answers_not_judged": "answers_not_evaluated",
}
_NAMED_BY_USERS: Final = ("tags", "inline", "texts")
"""Fields whose insides are the user's own words."""


def with_current_names(document: Any) -> Any:
    """A JSON document of version 1 under the names of today; anything else as it is."""
    if isinstance(document, list):
        return [with_current_names(one) for one in document]
    if not isinstance(document, dict):
        return document
    renamed = {
        FIELDS.get(name, name): value if name in _NAMED_BY_USERS else with_current_names(value)
        for name, value in document.items()
    }
    if "null" in renamed and "value" in renamed:
        renamed["noise_floor"] = renamed.pop("null")
    if renamed.get("code") in WARNING_CODES:
        renamed["code"] = WARNING_CODES[renamed["code"]]
    return renamed
