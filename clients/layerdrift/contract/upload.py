"""Uploads: data set files and zipped checkpoints that the service keeps for later requests."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.plain import Plain

_SHA256 = r"^[0-9a-f]{64}$"


class UploadRequest(BaseModel):
    """A file to upload."""

    model_config = ConfigDict(extra="forbid")

    filename: Plain = Field(
        min_length=1,
        max_length=255,
        pattern=r"^[^/\\\x00-\x1f]+$",
        description="file name; the extension sets the type: .zip for a checkpoint folder, anything else for a data "
        "set",
        examples=["reviews.csv"],
    )
    sha256: str | None = Field(
        default=None, pattern=_SHA256, description="expected SHA-256, verified once the bytes are uploaded"
    )
    bytes: int | None = Field(
        default=None, ge=0, strict=True, description="expected size in bytes, verified once the bytes are uploaded"
    )


class Upload(BaseModel):
    """An upload and its status."""

    model_config = ConfigDict(extra="ignore")

    id: str
    object: Literal["upload"] = "upload"
    uri: str = Field(description="URI to use in requests")
    filename: str
    status: Literal["waiting", "complete"] = Field(
        description="`waiting`: upload the bytes with PUT `/v1/uploads/{id}`"
    )
    bytes: int | None = None
    sha256: str | None = None
    created_at: datetime
