"""Hears MLflow's registry: a new model version is reviewed, and the verdict written back to it.

The service keeps the job; what this process has to remember stands as tags on the version, so that it may be stopped
and started at any time. Needs layerdrift[mlflow].
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from layerdrift import policies
from layerdrift.contract.errors import InputError
from layerdrift.contract.policy import Policy
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.integrations.mlflow import ANALYSIS_TAG, ERROR_TAG, QUEUED_TAG, Version, waiting, write_back
from layerdrift.sdk import Client
from mlflow import MlflowClient

OLDEST_SECONDS = 300
"""A signed delivery that is older may be somebody's copy, and is refused."""

LONGEST_TIMESTAMP = 20
"""Digits."""

MAX_BODY_BYTES = 1 << 20
STOP_SECONDS = 5.0
TAG_CHARACTERS = 500
_CREATED = ("model_version", "created")

logger = logging.getLogger(__name__)


class ModelReview(BaseModel):
    """How versions of one registered model are reviewed."""

    model_config = ConfigDict(extra="forbid")

    request: dict[str, Any] = Field(description="the analysis without `tuned`: base, dataset, analysis and so on")
    policy: Path | None = Field(default=None, description="relative to this file; null: the starter policy")
    baseline: str | None = Field(default=None, description="for rules with of_baseline")


class Reviews(BaseModel):
    """What is reviewed: registered models by name."""

    model_config = ConfigDict(extra="forbid")

    models: dict[str, ModelReview] = Field(min_length=1)

    @classmethod
    def load(cls, path: Path) -> Reviews:
        """From a YAML file; InputError where it, or a policy or request in it, cannot be used."""
        try:
            found = cls.model_validate(policies.parsed(path.read_text(encoding="utf-8")))
            for name, review in found.models.items():
                if review.policy is not None:
                    review.policy = path.parent / review.policy
                policy_of(review)
                request_for(review, Version(name, "1"))
        except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: {error}") from error
        return found


def policy_of(review: ModelReview, report: Report | None = None) -> Policy:
    """The policy that versions are held against; without one of its own, the starter policy for what was compared."""
    starter = policies.starter(policies.starter_for(report)) if report is not None else policies.starter()
    text = review.policy.read_text(encoding="utf-8") if review.policy else starter
    name = str(review.policy or "the starter policy")
    policy = policies.load(text, name)
    if review.baseline is not None:
        policy = Policy.model_validate(policy.model_dump() | {"baseline": review.baseline})
    if policy.needs_baseline and policy.baseline is None:
        raise InputError(f"{name} compares with a baseline: set baseline to its analysis, an_…")
    return policy


def request_for(review: ModelReview, version: Version) -> AnalysisRequest:
    """The request for one version."""
    name = {"name": f"{version.name} version {version.number}"}
    return AnalysisRequest.model_validate(name | review.request | {"tuned": {"uri": version.uri}})


class Receiver:
    """Reviews what it is told of, one version after another: the service queues, this only follows."""

    def __init__(self, reviews: Reviews, service: Client, registry: MlflowClient, secret: str) -> None:
        self._reviews = reviews
        self._service = service
        self._registry = registry
        self._secret = secret.encode()
        self._due: queue.Queue[Version | None] = queue.Queue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-reviews", daemon=True)

    def start(self) -> None:
        """Takes up what an earlier process has begun, then what comes."""
        for name in self._reviews.models:
            for found in waiting(self._registry, name):
                self._due.put(Version(found.name, str(found.version)))
        self._thread.start()

    def stop(self) -> None:
        """Ends after the review that is being followed, or in mid-review: whoever starts next takes it up."""
        self._stopping.set()
        self._due.put(None)
        self._thread.join(STOP_SECONDS)

    def app(self) -> Starlette:
        """POST / for MLflow's webhook, GET /health: 503 where nothing would be reviewed any more."""
        return Starlette(
            routes=[Route("/", self._hear, methods=["POST"]), Route("/health", self._health)],
        )

    async def _health(self, _request: Request) -> JSONResponse:
        alive = self._thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "the review thread has stopped"}, 200 if alive else 503)

    def verified(self, headers: Mapping[str, str], body: bytes, now: float) -> bool:
        """Whether MLflow signed this with the shared secret, not long ago."""
        delivery, timestamp = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
        if (
            not timestamp.isdecimal()
            or len(timestamp) > LONGEST_TIMESTAMP
            or abs(now - int(timestamp)) > OLDEST_SECONDS
        ):
            return False
        signed = b".".join((delivery.encode(), timestamp.encode(), body))
        expected = b"v1," + base64.b64encode(hmac.new(self._secret, signed, hashlib.sha256).digest())
        return hmac.compare_digest(expected, headers.get("x-mlflow-signature", "").encode())

    async def _hear(self, request: Request) -> JSONResponse:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return JSONResponse({"detail": "too large"}, 413)
        if not self.verified(request.headers, bytes(body), time.time()):
            return JSONResponse({"detail": "the signature is invalid or too old"}, 401)
        try:
            told = json.loads(bytes(body))
            event, data = (told["entity"], told["action"]), told["data"]
            version = Version(str(data["name"]), str(data["version"])) if event == _CREATED else None
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"detail": "this is not a model registry event"}, 422)
        if version is None or version.name not in self._reviews.models:
            return JSONResponse({"detail": "nothing to review"}, 200)
        if not await run_in_threadpool(self._tag, version, QUEUED_TAG, datetime.now(UTC).isoformat()):
            return JSONResponse({"detail": "the registry does not respond; send it again"}, 503)
        self._due.put(version)
        return JSONResponse({"detail": f"{version.uri} will be reviewed"}, 202)

    def _work(self) -> None:
        while (version := self._due.get()) is not None and not self._stopping.is_set():
            try:
                self.review(version)
            except Exception as error:  # whatever it was, the next version must not wait for it
                if self._stopping.is_set():
                    return
                logger.exception("could not review %s", version.uri)
                self._tag(version, ERROR_TAG, str(error)[:TAG_CHARACTERS])

    def review(self, version: Version) -> None:
        """Submits, follows, judges, writes back. Submitted again, the same request is the same analysis."""
        review = self._reviews.models[version.name]
        analysis = self._service.submit(request_for(review, version))
        self._tag(version, ANALYSIS_TAG, analysis.id)
        report = self._service.wait(analysis.id)
        verdict = self._service.gate(analysis.id, policy_of(review, report))
        html = self._service.rendered_report(analysis.id, "html")
        write_back(self._registry, version, report, verdict, html, f"{self._service.url}{analysis.links.report}")
        logger.info("%s: %s", version.uri, verdict.decision)

    def _tag(self, version: Version, key: str, value: str) -> bool:
        """Whether the registry took it."""
        try:
            self._registry.set_model_version_tag(version.name, version.number, key, value)
        except MlflowException as error:
            logger.error("could not tag %s: %s", version.uri, error)
            return False
        return True


def serve(path: Path, url: str | None, registry: MlflowClient, secret: str, host: str, port: int) -> None:
    """Listens until it is stopped."""
    reviews = Reviews.load(path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with Client(url) as service:
        receiver = Receiver(reviews, service, registry, secret)
        receiver.start()
        try:
            uvicorn.run(receiver.app(), host=host, port=port, log_level="warning")
        finally:
            receiver.stop()
