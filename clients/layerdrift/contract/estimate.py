"""What a request will take on the workers that are there, told before any work; and the head of a data set."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.analysis import StageName
from layerdrift.contract.errors import FieldProblem


class StageEstimate(BaseModel):
    """One stage of the analysis."""

    stage: StageName
    seconds: float = Field(ge=0)


class Estimate(BaseModel):
    """Time, memory and disk that an analysis will take; see docs/numbers.md for how far it can be trusted."""

    model_config = ConfigDict(extra="ignore")

    seconds: float = Field(ge=0, description="until the report, without the time in the queue")
    first_curve_seconds: float = Field(ge=0, description="until the preliminary report with the drift curve")
    stages: list[StageEstimate]
    memory_bytes: int = Field(ge=0, description="peak memory of the worker")
    scratch_bytes: int = Field(ge=0, description="disk of the worker for activations and sums")
    download_bytes: int = Field(ge=0, description="files that the worker fetches")
    basis: Literal["measured", "reference"] = Field(
        description="`measured`: from the last jobs of these workers; `reference`: no job has finished here yet, so "
        "the rates of a machine with 2 cores are used"
    )
    queued_before: int = Field(default=0, ge=0, description="queued analyses that come first")


class DatasetPreview(BaseModel):
    """The first rows of a data set as they would be read."""

    columns: list[str] = Field(
        description="columns or keys that the file has; empty: not known before the worker reads it"
    )
    rows: list[PreviewRow]
    rows_estimated: int | None = Field(description="rows in the whole file, from its size; null: not known")
    problems: list[FieldProblem] = Field(default=[], description="why it cannot be used as it is")


class PreviewRow(BaseModel):
    """One row."""

    text: str
    pair: str | None = None
    label: str | None = None
    group: str | None = None


class Source(BaseModel):
    """Something that a request can name."""

    uri: str
    name: str
    kind: Literal["folder", "checkpoint", "upload", "registered", "file"]


class Sources(BaseModel):
    """Models and data sets that this service has at hand."""

    models: list[Source]
    datasets: list[Source]


DatasetPreview.model_rebuild()
