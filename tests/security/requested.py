"""What the tests of the API's bounds ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.builders.texts import make_texts

MIB = 1 << 20


POST = "/v1/analyses"


def request(base: Path, tuned: Path, **more: Any) -> dict[str, Any]:
    return {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": {"inline": {"texts": make_texts(60)}},
        "analysis": {"sae": None, "grafts": False},
        **more,
    }
