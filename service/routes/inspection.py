"""POST /v1/inspect: the route, and behind it a LitAPI with batches: one process holds the pairs for many requests.

LitServe reads annotations at run time, so this module does without postponed ones.
"""

import logging
import os
from collections.abc import Awaitable, Callable

import litserve as ls
import redis
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from backends.observability import logs
from backends.settings import Settings
from layerdrift.contract.errors import LayerdriftError, UnsupportedError
from layerdrift.contract.inspection import Inspection, InspectionRequest
from service.http.access import CurrentDeployment, Reader
from service.http.problems import documented, problem_response, redis_away, unforeseen
from service.http.query_parameters import ONLY_KNOWN_PARAMETERS
from service.use_cases.inspect import Inspections

PATH = "/v1/inspect"
MAX_BATCH, BATCH_SECONDS = 8, 0.02

logger = logging.getLogger(__name__)


class Question(BaseModel):
    """A request and whose it is."""

    tenant: str
    request: InspectionRequest


class InspectAPI(ls.LitAPI):  # type: ignore[misc]
    """Texts through the pair of a finished analysis."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(api_path=PATH, max_batch_size=MAX_BATCH, batch_timeout=BATCH_SECONDS)
        self._settings = settings
        self._inspections: Inspections | None = None

    def setup(self, device: str) -> None:
        """Loads nothing yet: the port is closed until this returns, and torch takes seconds."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep
        logs.configure(self._settings.log_format)

    def decode_request(self, request: Question) -> Question:
        """What the route made of the request, as it is."""
        return request

    def batch(self, inputs: list[Question]) -> list[Question]:
        """As they came."""
        return list(inputs)

    def predict(self, questions: list[Question]) -> list[JSONResponse]:
        """An answer or a problem for each; what is wrong with one does not reach the others."""
        try:
            return self._answers(questions)
        except UnsupportedError as error:
            return [problem_response(error) for _ in questions]
        except redis.RedisError as error:
            logger.warning("Redis is unavailable: %s", error)
            return [redis_away() for _ in questions]
        except Exception:
            if len(questions) > 1:  # one of them may be to blame
                return [answer for question in questions for answer in self.predict([question])]
            logger.exception("texts could not be inspected")
            return [unforeseen()]

    def unbatch(self, output: list[JSONResponse]) -> list[JSONResponse]:
        """As they are."""
        return output

    def encode_response(self, output: JSONResponse) -> JSONResponse:
        """The answer, as it is."""
        return output

    def _answers(self, questions: list[Question]) -> list[JSONResponse]:
        if self._inspections is None:
            self._inspections = Inspections(self._settings)
        return [
            problem_response(found)
            if isinstance(found, LayerdriftError)
            else JSONResponse(found.model_dump(mode="json", exclude_none=False))
            for found in self._inspections.answer([(one.tenant, one.request) for one in questions])
        ]


def add_route(app: FastAPI, asked: Callable[[Question], Awaitable[Response]]) -> None:
    """Puts the route in front of LitServe's endpoint: who asks, of which analysis."""

    async def inspect_texts(body: InspectionRequest, key: Reader, deployment: CurrentDeployment) -> Response:
        analysis_id = await run_in_threadpool(deployment.listing.resolve, key.tenant, body.analysis_id)
        request = body.model_copy(update={"analysis_id": analysis_id})
        return await asked(Question(tenant=key.tenant, request=request))

    app.add_api_route(
        PATH,
        inspect_texts,
        methods=["POST"],
        dependencies=ONLY_KNOWN_PARAMETERS,
        response_model=None,
        tags=["analyses"],
        name="inspect_texts",
        summary="Inspect texts",
        description="Run texts through both models of a finished analysis. Returns drift, norms and the most active "
        "latents of both autoencoders for each token at each layer. The first request for a pair loads its models.",
        responses={
            200: {"model": Inspection, "description": "The inspected texts, in the order of the request"},
            **documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 501, 503, 504),
        },
    )
