"""What a worker has for one job."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Capacity(BaseModel):
    """memory_bytes: of the machine or the container. scratch_bytes: free on the disk where jobs keep their files.

    device_memory_bytes: of the smallest GPU that jobs run on; None: they run on the CPU, or it is unknown.
    """

    cores: int = Field(ge=1)
    memory_bytes: int = Field(ge=0)
    scratch_bytes: int = Field(ge=0)
    device: str = "cpu"
    device_memory_bytes: int | None = Field(default=None, ge=0)
