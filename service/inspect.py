"""POST /v1/inspect as a LitAPI with batches: one process holds the pairs, and answers many requests at once.

The one door between service and workers: `workers.inspecting` is loaded when it is first asked for, and only where
torch is installed. LitServe reads annotations at run time, so this module does without postponed ones.
"""

import importlib
import importlib.util
import logging
import os
from typing import Any

import litserve as ls
import redis
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from backends.deployment import Deployment
from backends.observability import logs
from backends.settings import Settings
from layerdrift.contract.errors import LayerdriftError, UnsupportedError
from layerdrift.contract.inspection import InspectionRequest
from service.problems import problem_response, redis_away, unforeseen

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
        self._inspector: Any = None

    def setup(self, device: str) -> None:
        """Loads nothing yet: the port is closed until this returns, and torch takes seconds."""
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep
        logs.configure(self._settings.log_format)

    def decode_request(self, request: Question) -> Question:
        """What `service.main`'s route made of the request, as it is."""
        return request

    def batch(self, inputs: list[Question]) -> list[Question]:
        """As they came."""
        return list(inputs)

    def predict(self, questions: list[Question]) -> list[JSONResponse]:
        """An answer or a problem for each; what is wrong with one does not reach the others."""
        if importlib.util.find_spec("torch") is None:
            error = UnsupportedError("texts can only be inspected where torch is: install layerdrift-server[worker]")
            return [problem_response(error) for _ in questions]
        try:
            return self._answers(questions)
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
        workers = importlib.import_module("workers.inspecting")
        if self._inspector is None:
            folder, limit = self._settings.home.resolve() / "inspect", self._settings.inspect_memory_bytes
            self._inspector = workers.Inspector(Deployment.connect(self._settings), folder, limit)
        asked = [workers.Asked(one.tenant, one.request.analysis_id, one.request.texts) for one in questions]
        return [
            problem_response(found)
            if isinstance(found, LayerdriftError)
            else JSONResponse(found.model_dump(mode="json", exclude_none=False))
            for found in self._inspector.answer(asked)
        ]
