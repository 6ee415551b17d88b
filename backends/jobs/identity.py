"""The id of an analysis: the same question has the same id, the same cache entry and the same report."""

from __future__ import annotations

import base64
import hashlib
import json

from backends.sources.pinning import Pins
from layerdrift import __version__
from layerdrift.contract.request import AnalysisRequest


def analysis_id(tenant: str, request: AnalysisRequest, pins: Pins) -> str:
    """`an_` and 26 characters: a hash of the tenant, the request with its defaults, its pins, the engine's version."""
    question = {
        "tenant": tenant,
        "engine": __version__,
        "request": request.model_dump(mode="json", exclude={"webhook"}),
        "pins": pins.model_dump(mode="json"),
    }
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()
    return "an_" + base64.b32encode(digest).decode().lower()[:26]
