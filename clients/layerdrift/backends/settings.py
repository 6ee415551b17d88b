"""Every setting of the service and the workers, read from the environment (prefix `LAYERDRIFT_`)."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

GIB = 2**30


class Settings(BaseSettings):
    """Settings with their defaults; `LAYERDRIFT_PORT=9000` sets `port`."""

    model_config = SettingsConfigDict(env_prefix="LAYERDRIFT_", extra="ignore")

    host: str = Field(default="127.0.0.1", description="address the API binds to")
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="names that the API may be called by, separated by commas; default: those of loopback while it "
        "binds there, else any",
    )
    port: int = Field(default=8000, ge=1024, le=65535, description="port of the API")
    instance: str = Field(
        default="", max_length=100, description="told by GET /health, so that whoever started the API knows it again"
    )
    home: Path = Field(default=Path("var"), description="folder for data of the embedded stack and for scratch")
    model_roots: Annotated[list[Path], NoDecode] = Field(
        default=[],
        description="folders that file: URIs may name, separated by colons; default: `models` and `data` in home",
    )
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="Redis or Valkey 7 or later")
    admin_key: SecretStr | None = Field(
        default=None, description="an API key with every scope, made when the API starts; 20 characters or more"
    )
    s3_endpoint: str | None = Field(default=None, description="S3 endpoint URL; unset: AWS's own")
    s3_public_endpoint: str | None = Field(
        default=None, description="where clients reach the same S3, for links to artifacts; unset: s3_endpoint"
    )
    s3_region: str = Field(default="us-east-1")
    s3_bucket: str = Field(default="layerdrift", min_length=3, description="bucket for records and reports")
    readable_buckets: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="buckets beside its own that s3: URIs may name, separated by commas; `bucket/prefix/` names a part",
    )
    s3_access_key: SecretStr | None = Field(default=None, description="unset: boto3 looks in its usual places")
    s3_secret_key: SecretStr | None = Field(default=None)
    log_format: Literal["json", "plain"] = Field(default="json", description="of log lines")
    metrics_port: int | None = Field(
        default=None, ge=1024, le=65535, description="where a worker answers Prometheus; unset: nowhere"
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="analyses that the embedded stack runs at once, sharing the cores",
    )
    scratch_bytes: int = Field(default=20 * GIB, ge=2**26, description="disk a job may use for activations and sums")
    max_dataset_bytes: int = Field(default=GIB, ge=2**10, description="largest data set file")
    max_model_bytes: int = Field(default=100 * GIB, ge=2**20, description="largest checkpoint, all files together")
    hf_endpoint: str = Field(
        default_factory=lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
        description="hub that hf: URIs name; default: HF_ENDPOINT, or Hugging Face's",
    )
    hf_token: SecretStr | None = Field(default=None, description="opens the hub's private and gated repositories")
    mlflow_url: str | None = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI"),
        description="MLflow server that mlflow: URIs name; default: MLFLOW_TRACKING_URI",
    )
    mlflow_token: SecretStr | None = Field(default=None, description="bearer token for the MLflow server")
    mlflow_username: str | None = Field(default=None, description="with the password, where it has no tokens")
    mlflow_password: SecretStr | None = Field(default=None)
    webhook_secrets: dict[str, SecretStr] = Field(
        default={}, description='what webhooks are signed with, by name, as JSON: {"ci": "whsec_..."} (base64)'
    )
    webhook_hosts: Annotated[list[str], NoDecode] = Field(
        default=[], description="hosts of webhooks that need not be public nor https, separated by commas"
    )
    max_upload_bytes: int = Field(default=20 * GIB, ge=2**10, description="largest upload")
    inspect_memory_bytes: int = Field(
        default=4 * GIB, ge=2**20, description="memory for the pairs that texts are inspected with"
    )
    link_seconds: int = Field(default=3600, ge=1, le=604_800, description="how long links to artifacts are good for")
    max_parameters: int = Field(default=20_000_000_000, ge=1, description="largest model, in parameters")
    report_cache_seconds: int = Field(default=86_400, ge=1, description="how long Redis keeps a report")
    checkpoint_seconds: int = Field(
        default=120, ge=1, description="so often a long training of autoencoders is kept for whoever takes it over"
    )
    lease_seconds: int = Field(default=30, ge=3, description="a job whose worker is silent for so long is given away")
    cancel_seconds: int = Field(
        default=60, ge=1, description="a cancelled job that comes to no next step for so long is ended with its process"
    )
    max_attempts: int = Field(default=3, ge=1, description="a job that lost so many workers fails")

    @field_validator("model_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("webhook_hosts", "allowed_hosts", "readable_buckets", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _plain_names(cls, value: list[str]) -> list[str]:
        for name in value:
            if "/" in name or name.count(":") == 1:
                raise ValueError(f"{name!r} is no host name: leave out scheme and port")
        return [name.strip("[]").lower() for name in value]

    @field_validator("webhook_secrets")
    @classmethod
    def _base64(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            try:
                base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
            except ValueError as error:
                raise ValueError(f"the secret {name!r} is not base64") from error
        return value

    @property
    def roots(self) -> list[Path]:
        """The folders that file: URIs may name, as real paths."""
        chosen = self.model_roots or [self.home / "models", self.home / "data"]
        return [path.resolve() for path in chosen]

    @property
    def scratch(self) -> Path:
        """Where a worker keeps what it needs for the time of a job."""
        return self.home.resolve() / "scratch"
