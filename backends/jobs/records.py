"""Records as they are kept, and which of them a list shows. Knows neither Redis nor S3."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field

from backends.sources.pinning import Pins
from backends.storage import key_names
from layerdrift import __version__
from layerdrift.contract.analysis import FIRST_ENGINE, Analysis, Links, Progress, ReportState, StageName, Status
from layerdrift.contract.errors import Problem, UnavailableError
from layerdrift.contract.key import DEFAULT_TENANT
from layerdrift.contract.plain import STORED
from layerdrift.contract.policy import Decision
from layerdrift.contract.request import AnalysisRequest, Webhook
from layerdrift.contract.study import StudyRequest, TrialKind

DEFAULT_PRIORITY = 5


RECORD_SCHEMA: Final = 1
"""Raised when a process of the version before would lose something by reading a record and writing it again."""


class NewerRecordError(UnavailableError):
    """A later version wrote a record; this one must not write it again, for what it does not know would be lost."""


class _Schema(BaseModel):
    schema_version: int = RECORD_SCHEMA


class Delivery(BaseModel):
    """A webhook of a job, and what became of it."""

    model_config = ConfigDict(frozen=True)

    webhook: Webhook
    tries: int = 0
    error: str | None = Field(default=None, description="of the last try")
    told_at: datetime | None = None
    given_up: bool = False

    @property
    def waiting(self) -> bool:
        """Whether it is still to be told."""
        return self.told_at is None and not self.given_up


class Record(BaseModel, ABC):
    """The truth about something that workers do: what analyses and studies have in common."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = RECORD_SCHEMA
    id: str
    tenant: str = DEFAULT_TENANT
    submitted_by: str = Field(default="", description="name of the API key, or its id; empty: without a key")
    priority: int = Field(default=DEFAULT_PRIORITY, ge=0, le=9, description="9 before 0")
    status: Status = Status.QUEUED
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: Problem | None = None
    attempts: int = Field(default=0, description="how many workers have taken it")
    cancel_requested: bool = False
    deliveries: list[Delivery] = []

    @classmethod
    def stored(cls, body: bytes) -> Self:
        """A record as it was written, by this version or an earlier one.

        Raises:
            NewerRecordError: a later version wrote it.
        """
        schema = _Schema.model_validate_json(body).schema_version
        if schema > RECORD_SCHEMA:
            raise NewerRecordError(
                f"the record has schema {schema}, and this process (layerdrift {__version__}) knows up to "
                f"{RECORD_SCHEMA}: a later version wrote it; upgrade this process"
            )
        return cls.model_validate_json(body, context=STORED)

    @property
    def owned(self) -> key_names.Owned:
        """Its id, and whose it is."""
        return key_names.Owned(self.tenant, self.id)

    @property
    @abstractmethod
    def title(self) -> str:
        """What lists call it."""

    @property
    @abstractmethod
    def tags(self) -> Mapping[str, str]:
        """What lists are filtered by."""

    @property
    def durable(self) -> tuple[object, ...]:
        """What an emptied Redis must not take with it while the record is open, and so goes to S3 when it changes."""
        return self.cancel_requested, self.deliveries

    def ended(self, status: Status, error: Problem | None = None) -> Self:
        """The record in a final state."""
        return self.model_copy(update={"status": status, "error": error, "finished_at": datetime.now(UTC)})


class JobRecord(Record):
    """The truth about one analysis."""

    request: AnalysisRequest
    compared: str = Field(default="", description="models and data set in short; empty: an older record")
    pins: Pins
    progress: Progress = Field(default_factory=Progress)
    drift: list[float] | None = Field(default=None, description="by layer, once there is a report")
    operations: dict[StageName, float] = Field(default={}, description="work of each stage, as `workload` counts it")
    memory_bytes: int | None = Field(default=None, description="peak memory, as `workload` estimates it; null: unknown")
    verdict: Decision | None = Field(default=None, description="of the starter policy")
    engine: str = Field(default=FIRST_ENGINE, description="version that it was submitted to")
    preliminary: bool = Field(default=False, description="whether a preliminary report was written")
    trace: str | None = Field(default=None, description="traceparent of the request that made it")

    @property
    def title(self) -> str:
        """The name from the request, or what is compared."""
        return self.request.name or self.compared or self.request.compared

    @property
    def tags(self) -> Mapping[str, str]:
        """Those of the request."""
        return self.request.tags

    @property
    def report(self) -> ReportState:
        """Which report there is to read."""
        if self.status is Status.SUCCEEDED:
            return "complete"
        return "preliminary" if self.preliminary and not self.status.final else "none"

    def analysis(self) -> Analysis:
        """What the API shows of it."""
        path = f"/v1/analyses/{self.id}"
        return Analysis(
            id=self.id,
            name=self.title,
            compared=self.compared or self.request.compared,
            tags=self.request.tags,
            status=self.status,
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            request=self.request,
            progress=self.progress,
            error=self.error,
            drift=self.drift,
            report=self.report,
            verdict=self.verdict,
            submitted_by=self.submitted_by,
            engine=self.engine,
            older_engine=self.status is Status.SUCCEEDED and self.engine != __version__,
            links=Links(
                self=path,
                events=f"{path}/events",
                report=f"{path}/report",
                artifacts=f"{path}/artifacts",
                cancel=f"{path}/cancel",
            ),
        )


class MemberRecord(BaseModel):
    """A member of a study, and the analysis that it is."""

    model_config = ConfigDict(frozen=True)

    name: str
    task: str
    analysis_id: str
    made: bool = Field(description="whether the study made the analysis, or made it again")


class TrialRecord(BaseModel):
    """A trial of adapters of a study, and the analysis that it is."""

    model_config = ConfigDict(frozen=True)

    name: str
    task: str
    kind: TrialKind
    layers: list[int]
    rank: int
    analysis_id: str
    made: bool = Field(description="whether the study made the analysis, or made it again")


class StudyRecord(Record):
    """The truth about one study: queued until its members have ended, then run by a worker."""

    request: StudyRequest
    members: list[MemberRecord]
    trials: list[TrialRecord] = []

    @property
    def title(self) -> str:
        """The name from the request, or how many members it has."""
        return (
            self.request.name
            or f"{len(self.members)} fine-tunes of {self.request.base.uri.rstrip('/').rsplit('/', 1)[-1]}"
        )

    @property
    def tags(self) -> Mapping[str, str]:
        """Those of the request."""
        return self.request.tags

    @property
    def durable(self) -> tuple[object, ...]:
        """Its members and trials too: they tell what it made."""
        return *super().durable, self.members, self.trials

    @property
    def awaited(self) -> list[MemberRecord | TrialRecord]:
        """All that it waits for."""
        return [*self.members, *self.trials]


@dataclass(frozen=True)
class Wanted:
    """Which records a list shows; None: any.

    name: found anywhere in a title, upper or lower case. title: the whole of it, exactly.
    """

    status: Status | None = None
    name: str | None = None
    tag: tuple[str, str] | None = None
    title: str | None = None

    def admits(self, record: Record) -> bool:
        """Whether a record is one of them."""
        return (
            self.status in (None, record.status)
            and (self.name is None or self.name.casefold() in record.title.casefold())
            and self.title in (None, record.title)
            and (self.tag is None or record.tags.get(self.tag[0]) == self.tag[1])
        )


EVERY = Wanted()
