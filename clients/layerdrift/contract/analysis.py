"""The Analysis: one request and how far it has come."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.errors import Problem
from layerdrift.contract.policy import Decision
from layerdrift.contract.request import AnalysisRequest


class Status(StrEnum):
    """Status of an analysis. The last three are final."""

    QUEUED = "queued"  # accepted, waiting for a worker
    RUNNING = "running"  # a worker holds the lease
    SUCCEEDED = "succeeded"  # the report is in S3
    FAILED = "failed"  # `error` says why; the same request can be submitted again
    CANCELLED = "cancelled"  # stopped on request

    @property
    def final(self) -> bool:
        """Whether the status can no longer change."""
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class StageName(StrEnum):
    """Stages of a job, in the order they run."""

    RESOLVE = "resolve"  # fetch and check the checkpoints and the data set
    FINETUNE = "finetune"  # create the tuned checkpoint, if requested
    EXTRACT = "extract"  # run both models over the texts
    COMPARE = "compare"  # compute drift and zones from the accumulated moments
    LEARNED = "learned"  # look for what a language model's fine-tune taught
    SAE = "sae"  # train and evaluate the sparse autoencoders
    CAUSAL = "causal"  # measure the effect on outputs: grafts, freeze sweep
    REPORT = "report"  # write the report


class Stage(BaseModel):
    """Progress of one stage."""

    name: StageName
    status: Literal["pending", "running", "succeeded", "failed", "cancelled"] = "pending"
    fraction: float = Field(default=0.0, ge=0, le=1, description="completed share of the stage")
    started_at: datetime | None = None
    finished_at: datetime | None = None
    detail: str = Field(default="", description="current activity, for display")
    numbers: dict[str, float] = Field(
        default={},
        description="metrics of a running training: `step` with `loss` (nats), or with `fvu_lowest` and "
        "`fvu_highest` of the autoencoders being trained in parallel",
    )


class Progress(BaseModel):
    """Progress of the analysis as a whole."""

    stage: StageName | None = Field(default=None, description="the stage that is running or ran last")
    fraction: float = Field(default=0.0, ge=0, le=1, description="completed share of the stages, not of the time")
    stages: list[Stage] = Field(default_factory=list)
    seconds_left: float | None = Field(
        default=None, ge=0, description="estimated seconds until the analysis finishes; null: unknown"
    )


class Links(BaseModel):
    """Paths of the resources of an analysis."""

    self: str
    events: str
    report: str
    artifacts: str
    cancel: str


ReportState = Literal["none", "preliminary", "complete"]


FIRST_ENGINE: Final = "0.1.0"
"""The version that wrote records before these named one."""


class Analysis(BaseModel):
    """An analysis request and its progress."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(
        description="hash of the pinned request and the engine version: identical requests have the same id"
    )
    object: Literal["analysis"] = "analysis"
    name: str = Field(description="name from the request, or `compared` if empty")
    compared: str = Field(
        default="", description="short form of the models and the data set: `base → tuned on reviews.csv`"
    )
    tags: dict[str, str]
    status: Status
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    request: AnalysisRequest
    progress: Progress
    error: Problem | None = Field(default=None, description="why the analysis failed")
    drift: list[float] | None = Field(
        default=None,
        description="1 - CKA of the token view by layer, once there is a report, including a preliminary one",
    )
    report: ReportState = Field(
        default="none",
        description="whether `links.report` is available; `preliminary` while later stages are still running",
    )
    verdict: Decision | None = Field(
        default=None,
        description="verdict of the starter policy, once the analysis has succeeded; null: it could not be evaluated",
    )
    submitted_by: str = Field(default="", description="name or id of the API key; empty if no key is required")
    engine: str = Field(default=FIRST_ENGINE, description="version of the engine that it was submitted to")
    older_engine: bool = Field(
        default=False,
        description="another version of the engine made the report; `POST /v1/analyses/{id}/rerun` makes it again",
    )
    queued_before: int | None = Field(
        default=None,
        ge=0,
        description="number of queued analyses ahead of this one; only reported for a single queued analysis",
    )
    links: Links


class AnalysisPage(BaseModel):
    """A page of analyses, newest first."""

    items: list[Analysis]
    next_cursor: str | None = Field(description="pass as `cursor` to get the next page; null on the last page")
