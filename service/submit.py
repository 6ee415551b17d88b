"""POST /v1/analyses as a LitAPI: pinning and writing are blocking work, done in LitServe's inference workers.

LitServe reads the annotations of `decode_request` and `encode_response` at run time, so this module does without
postponed ones.
"""

import logging
from datetime import UTC, datetime

import litserve as ls
import redis
from fastapi.responses import JSONResponse

from layerdrift.backends.deployment import Deployment
from layerdrift.backends.identity import analysis_id
from layerdrift.backends.jobs import JobRecord
from layerdrift.backends.settings import Settings
from layerdrift.contract.errors import LayerdriftError
from layerdrift.contract.request import AnalysisRequest
from service.problems import ProblemResponse, redis_away

PATH = "/v1/analyses"
TENANT = "default"

logger = logging.getLogger(__name__)


class SubmitAPI(ls.LitAPI):  # type: ignore[misc]
    """Accepts an analysis: pins what it points at, writes the record, announces the job."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(api_path=PATH)
        self._settings = settings
        self._deployment: Deployment | None = None

    def setup(self, device: str) -> None:
        """Makes this process's connections; `device` does not matter, nothing is computed here."""
        self._deployment = Deployment.connect(self._settings)

    def decode_request(self, request: AnalysisRequest) -> AnalysisRequest:
        """The validated body, as it is."""
        return request

    def predict(self, request: AnalysisRequest) -> JSONResponse:
        """202 with a new analysis, 200 with the one that the same request made before, or a problem."""
        if self._deployment is None:
            raise RuntimeError("setup() has not been called")
        try:
            return submit(self._deployment, request)
        except LayerdriftError as error:
            return ProblemResponse(error.problem())
        except redis.RedisError as error:
            logger.warning("Redis is away: %s", error)
            return redis_away()

    def encode_response(self, output: JSONResponse) -> JSONResponse:
        """The answer, as it is."""
        return output


def submit(deployment: Deployment, request: AnalysisRequest) -> JSONResponse:
    """Pins the request and makes its job, unless it is there already.

    Raises:
        InputError: the request points at something unusable.
        UnavailableError: S3 is away.
    """
    pins = deployment.sources.pin(request)
    fresh = JobRecord(id=analysis_id(TENANT, request, pins), created_at=datetime.now(UTC), request=request, pins=pins)
    record, to_run = deployment.jobs.submit(fresh)
    if to_run:
        deployment.queue.announce(record.id)
    analysis = record.analysis()
    return JSONResponse(
        analysis.model_dump(mode="json"),
        status_code=202 if to_run else 200,
        headers={"Location": analysis.links.self},
    )
