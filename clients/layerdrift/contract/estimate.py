"""What a request will take on the workers that are there, told before any work; and the head of a data set."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.analysis import StageName
from layerdrift.contract.errors import FieldProblem


class StageEstimate(BaseModel):
    """Estimated duration of one stage."""

    stage: StageName
    seconds: float = Field(ge=0)


class Estimate(BaseModel):
    """Estimated time, memory and disk of an analysis; see docs/numbers.md for the accuracy of estimates."""

    model_config = ConfigDict(extra="ignore")

    seconds: float = Field(ge=0, description="seconds until the report, excluding time in the queue")
    first_curve_seconds: float = Field(ge=0, description="seconds until the preliminary report with the drift curve")
    stages: list[StageEstimate]
    memory_bytes: int = Field(ge=0, description="peak memory of the worker")
    device_memory_bytes: int = Field(default=0, ge=0, description="peak memory of the GPU, if the worker has one")
    scratch_bytes: int = Field(ge=0, description="disk space of the worker for activations and sums")
    download_bytes: int = Field(ge=0, description="size of the files that the worker downloads")
    basis: Literal["measured", "reference"] = Field(
        description="`measured`: from the latest jobs on these workers; `reference`: no job has finished here yet, "
        "so the rates of a 2-core machine are used"
    )
    queued_before: int = Field(default=0, ge=0, description="number of queued analyses ahead of this one")


class DatasetPreview(BaseModel):
    """The first rows of a data set, as they would be read."""

    columns: list[str] = Field(description="columns or keys of the file; empty: unknown until the worker reads it")
    rows: list[PreviewRow]
    rows_estimated: int | None = Field(description="number of rows in the file, estimated from its size; null: unknown")
    problems: list[FieldProblem] = Field(default=[], description="why the data set cannot be used as it is")


class PreviewRow(BaseModel):
    """One row of a data set."""

    text: str
    pair: str | None = None
    label: str | None = None
    group: str | None = None


class Source(BaseModel):
    """A model or data set that requests can reference."""

    uri: str
    name: str
    kind: Literal["folder", "checkpoint", "upload", "registered", "file"]


class Sources(BaseModel):
    """The models and data sets available to requests."""

    models: list[Source]
    datasets: list[Source]


DatasetPreview.model_rebuild()
