"""Artifacts: the files that an analysis leaves."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Artifact(BaseModel):
    """One file."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(description="path below the analysis, such as `saes/base/layer-00/cfg.json`")
    media_type: str
    bytes: int = Field(ge=0)
    sha256: str
    url: str = Field(default="", description="a link to S3 that needs no key and ends after a while")


class ArtifactList(BaseModel):
    """The files of one analysis."""

    items: list[Artifact]
