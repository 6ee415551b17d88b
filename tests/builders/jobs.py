"""Jobs as the API leaves them for a worker."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from backends.deployment import Deployment
from backends.estimates.workload import workload
from backends.jobs.records import JobRecord
from backends.sources.pinning import PinnedModel, Sources
from layerdrift.contract.request import AnalysisRequest


class WatchedSources(Sources):
    """The real sources, with something that happens before each model is fetched."""

    def __init__(self, deployment: Deployment, before_fetch: Callable[[], None]) -> None:
        super().__init__(deployment.settings, deployment.blobs)
        self._before_fetch = before_fetch

    def fetch_model(self, pinned: PinnedModel, pointer: str, target: Path, on_progress: Callable[[float], None]) -> str:
        self._before_fetch()
        return super().fetch_model(pinned, pointer, target, on_progress)


def submitted(deployment: Deployment, request: AnalysisRequest) -> JobRecord:
    """A job of a request, under an id of its own, with the work that the service estimates."""
    pins = deployment.sources.pin(request)
    sizes = deployment.sources.sizes(request, pins)
    made = JobRecord(
        id=f"an_{uuid.uuid4().hex[:26]}",
        created_at=datetime.now(UTC),
        request=request,
        pins=pins,
        operations=workload(request, sizes.model, sizes.data, sizes.tuned_bytes, sizes.adapter).operations,
    )
    deployment.jobs.submit(made)
    return made
