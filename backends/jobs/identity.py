"""The ids of analyses and studies: the same question has the same id, the same cache entry and the same report."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence

from backends.sources.pinning import Pins
from layerdrift import __version__
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import StudyRequest


def analysis_id(tenant: str, request: AnalysisRequest, pins: Pins) -> str:
    """`an_` and 26 characters: a hash of the tenant, the request with its defaults, its pins, the engine's version."""
    question = {
        "tenant": tenant,
        "engine": __version__,
        "request": request.model_dump(mode="json", exclude={"webhook"}),
        "pins": pins.model_dump(mode="json"),
    }
    return "an_" + _digest(question)


def study_id(tenant: str, request: StudyRequest, analysis_ids: Sequence[str]) -> str:
    """`st_` and 26 characters: a hash of the tenant, the request with its defaults, and the members' analyses."""
    question = {"tenant": tenant, "request": request.model_dump(mode="json"), "analyses": list(analysis_ids)}
    return "st_" + _digest(question)


def _digest(question: object) -> str:
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:26]
