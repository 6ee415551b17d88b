"""Uploads: data set files and zipped checkpoints that the service keeps for later requests."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.plain import Plain

_SHA256 = r"^[0-9a-f]{64}$"


class UploadRequest(BaseModel):
    """What is going to be uploaded."""

    model_config = ConfigDict(extra="forbid")

    filename: Plain = Field(
        min_length=1,
        max_length=255,
        pattern=r"^[^/\\\x00-\x1f]+$",
        description="its name; the ending says what it is: .zip for a checkpoint folder, else a data set",
        examples=["reviews.csv"],
    )
    sha256: str | None = Field(default=None, pattern=_SHA256, description="checked when the bytes have come")
    bytes: int | None = Field(default=None, ge=0, strict=True, description="checked when the bytes have come")


class Upload(BaseModel):
    """An upload and how far it has come."""

    model_config = ConfigDict(extra="ignore")

    id: str
    object: Literal["upload"] = "upload"
    uri: str = Field(description="what requests name it by")
    filename: str
    status: Literal["waiting", "complete"] = Field(description="`waiting`: PUT the bytes to `/v1/uploads/{id}`")
    bytes: int | None = None
    sha256: str | None = None
    created_at: datetime
