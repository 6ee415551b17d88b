"""POST /v1/analyses: the route, and behind it a LitAPI, because pinning and writing are blocking work.

LitServe reads the annotations of `decode_request` and `encode_response` at run time, so this module does without
postponed ones.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Annotated

import litserve as ls
import redis
from fastapi import FastAPI, Header, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from backends.deployment import Deployment
from backends.jobs.idempotency import Answered
from backends.observability import logs
from backends.settings import Settings
from layerdrift.contract.analysis import Analysis
from layerdrift.contract.errors import LayerdriftError
from layerdrift.contract.request import AnalysisRequest
from service.http.access import CurrentDeployment, Submitter
from service.http.problems import documented, problem_response, redis_away
from service.http.query_parameters import ONLY_KNOWN_PARAMETERS
from service.routes.submitting import accepted, submission_of
from service.use_cases.submit import Submission, submit

PATH = "/v1/analyses"

logger = logging.getLogger(__name__)

RunInWorker = Callable[[Submission], Awaitable[Response]]
"""LitServe's own endpoint, which hands a submission to one of its workers."""


class SubmitAPI(ls.LitAPI):  # type: ignore[misc]
    """Submits in LitServe's inference workers."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(api_path=PATH)
        self._settings = settings
        self._deployment: Deployment | None = None

    def setup(self, device: str) -> None:
        """Makes this process's connections; `device` does not matter, nothing is computed here."""
        logs.configure(self._settings.log_format)
        self._deployment = Deployment.connect(self._settings)

    def decode_request(self, request: Submission) -> Submission:
        """What the route made of the request, as it is."""
        return request

    def predict(self, request: Submission) -> JSONResponse:
        """202 with a new analysis, 200 with the one that the same request made before, or a problem."""
        if self._deployment is None:
            raise RuntimeError("setup() has not been called")
        try:
            submitted = submit(self._deployment, request)
        except LayerdriftError as error:
            return problem_response(error)
        except redis.RedisError as error:
            logger.warning("Redis is unavailable: %s", error)
            return redis_away()
        return accepted(submitted.record, 202 if submitted.new else 200)

    def encode_response(self, output: JSONResponse) -> JSONResponse:
        """The answer, as it is."""
        return output


def add_route(app: FastAPI, run_in_worker: RunInWorker) -> None:
    """Puts the route in front of LitServe's endpoint: who asks, and whether they asked before."""

    async def submit_analysis(
        body: AnalysisRequest,
        key: Submitter,
        deployment: CurrentDeployment,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1, max_length=255, description="retries with the same key and body are processed only once"
            ),
        ] = None,
    ) -> Response:
        submission = submission_of(body, key)
        if idempotency_key is None:
            return await run_in_worker(submission)
        return await _idempotent(deployment, idempotency_key, submission, run_in_worker)

    app.add_api_route(
        PATH,
        submit_analysis,
        methods=["POST"],
        dependencies=ONLY_KNOWN_PARAMETERS,
        status_code=202,
        response_model=None,
        tags=["analyses"],
        name="submit_analysis",
        summary="Submit an analysis",
        description="Submit `base` and `tuned` to compare a pair, or `base` and `finetune` to fine-tune first. "
        "Repeating a request returns 200 with the existing analysis.",
        responses={
            202: {"model": Analysis, "description": "Accepted; poll `Location`"},
            200: {"model": Analysis, "description": "An identical request exists and has not failed"},
            **documented(400, 401, 403, 409, 413, 415, 422, 429, 503, 504),
        },
    )


async def _idempotent(
    deployment: Deployment, idempotency_key: str, submission: Submission, run_in_worker: RunInWorker
) -> Response:
    """The answer to the first request with this Idempotency-Key, now or again."""
    once, tenant, whole = deployment.idempotency, submission.tenant, submission.request.model_dump_json()
    before = await run_in_threadpool(once.begin, tenant, idempotency_key, whole)
    if before is not None:
        record = await run_in_threadpool(deployment.jobs.get, before.id, tenant)
        return accepted(record, before.status)
    try:
        answer = await run_in_worker(submission)
    except BaseException:
        await run_in_threadpool(once.forget, tenant, idempotency_key)
        raise
    if answer.status_code in (200, 202):
        made = Answered(answer.status_code, answer.headers["Location"].rpartition("/")[2])
        await run_in_threadpool(once.finish, tenant, idempotency_key, whole, made)
    else:
        await run_in_threadpool(once.forget, tenant, idempotency_key)
    return answer
