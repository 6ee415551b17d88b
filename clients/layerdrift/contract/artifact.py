"""Artifacts: the files that an analysis leaves."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Artifact(BaseModel):
    """A file produced by an analysis."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(description="path within the analysis, such as `saes/base/layer-00/cfg.json`")
    media_type: str
    bytes: int = Field(ge=0)
    sha256: str
    url: str = Field(default="", description="temporary S3 link that works without an API key")


class ArtifactList(BaseModel):
    """The files of an analysis."""

    items: list[Artifact]
