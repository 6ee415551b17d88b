"""The Analysis: one request and how far it has come."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.errors import Problem
from layerdrift.contract.policy import Decision
from layerdrift.contract.request import AnalysisRequest


class Status(StrEnum):
    """Where an analysis stands. The last three are final."""

    QUEUED = "queued"  # accepted; no worker has it
    RUNNING = "running"  # a worker holds its lease
    SUCCEEDED = "succeeded"  # the report is in S3
    FAILED = "failed"  # `error` says why; the same request may be posted again
    CANCELLED = "cancelled"  # somebody asked for it to stop

    @property
    def final(self) -> bool:
        """Whether it stays so for good."""
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class StageName(StrEnum):
    """The stages of a job, in the order in which they run."""

    RESOLVE = "resolve"  # fetch and check the checkpoints and the data set
    FINETUNE = "finetune"  # make the tuned checkpoint, where asked
    EXTRACT = "extract"  # run both models over the texts
    COMPARE = "compare"  # turn the gathered moments into drift and zones
    SAE = "sae"  # train and measure the sparse autoencoders
    CAUSAL = "causal"  # does it matter: outputs, grafts, the freeze sweep
    REPORT = "report"  # write the report


class Stage(BaseModel):
    """Progress of one stage."""

    name: StageName
    status: Literal["pending", "running", "succeeded", "failed", "cancelled"] = "pending"
    fraction: float = Field(default=0.0, ge=0, le=1, description="share of the stage that is done")
    started_at: datetime | None = None
    finished_at: datetime | None = None
    detail: str = Field(default="", description="what it is doing, for people")
    numbers: dict[str, float] = Field(
        default={},
        description="of a training that runs: `step` with `loss` (nats), or with `fvu_lowest` and `fvu_highest` of the "
        "autoencoders that are trained side by side",
    )


class Progress(BaseModel):
    """Progress of the whole."""

    stage: StageName | None = Field(default=None, description="the stage that runs, or ran last")
    fraction: float = Field(default=0.0, ge=0, le=1, description="share of the stages that is done; not of the time")
    stages: list[Stage] = Field(default_factory=list)
    seconds_left: float | None = Field(
        default=None, ge=0, description="estimated seconds until the analysis has finished; null: not known"
    )


class Links(BaseModel):
    """Paths of what belongs to an analysis."""

    self: str
    events: str
    report: str
    artifacts: str
    cancel: str


ReportState = Literal["none", "preliminary", "complete"]


class Analysis(BaseModel):
    """One request and how far it has come."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field(description="hash of the pinned request and the engine's version: the same question, the same id")
    object: Literal["analysis"] = "analysis"
    name: str = Field(description="the request's name, else `compared`")
    compared: str = Field(default="", description="the models and the data set in short: `base → tuned on reviews.csv`")
    tags: dict[str, str]
    status: Status
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    request: AnalysisRequest
    progress: Progress
    error: Problem | None = Field(default=None, description="why it failed")
    drift: list[float] | None = Field(
        default=None, description="1 - CKA of the token view by layer, once there is a report, also a preliminary one"
    )
    report: ReportState = Field(
        default="none", description="whether `links.report` answers: `preliminary` while later stages still run"
    )
    verdict: Decision | None = Field(
        default=None, description="of the starter policy, once the analysis has succeeded; null: it could not decide"
    )
    submitted_by: str = Field(default="", description="name or id of the API key; empty where none is asked for")
    queued_before: int | None = Field(
        default=None, ge=0, description="queued analyses that come first; of a single queued analysis alone"
    )
    links: Links


class AnalysisPage(BaseModel):
    """A page of analyses, newest first."""

    items: list[Analysis]
    next_cursor: str | None = Field(description="pass as `cursor` for the next page; null on the last one")
