"""Every setting of the service and the workers, read from the environment (prefix `LAYERDRIFT_`)."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from layerdrift.contract.usage import Quota

GIB = 2**30


MIN_SECRET_BYTES = 16
"""Of a secret that webhooks are signed with."""


class Retention(BaseModel):
    """How long what has ended is kept; null: for ever. Days are those since an analysis ended, or an upload came."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    analyses_days: float | None = Field(default=None, gt=0, description="analyses and studies, with all that they left")
    artifacts_days: float | None = Field(
        default=None, gt=0, description="autoencoders, scores and other files beside a report; the report stays"
    )
    checkpoints_days: float | None = Field(default=None, gt=0, description="checkpoints that fine-tunes made")
    uploads_days: float | None = Field(default=None, gt=0, description="uploads that no analysis names")
    stored_bytes: int | None = Field(
        default=None, gt=0, description="of a tenant: its oldest analyses go until it has no more"
    )


class Settings(BaseSettings):
    """Settings with their defaults; `LAYERDRIFT_PORT=9000` sets `port`."""

    model_config = SettingsConfigDict(env_prefix="LAYERDRIFT_", extra="ignore", hide_input_in_errors=True)

    host: str = Field(default="127.0.0.1", description="address the API binds to")
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="host names that the API accepts, comma-separated; default: loopback names when bound to "
        "loopback, otherwise any",
    )
    port: int = Field(default=8000, ge=1024, le=65535, description="port of the API")
    instance: str = Field(
        default="",
        max_length=100,
        description="reported by GET /health, so that whoever started the API can recognise it",
    )
    home: Path = Field(default=Path("var"), description="folder for data of the embedded stack and for scratch")
    model_roots: Annotated[list[Path], NoDecode] = Field(
        default=[],
        description="folders that file: URIs may name, separated by colons; default: `models`, `data`, `demo` in home",
    )
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="Redis or Valkey 7 or later")
    admin_key: SecretStr | None = Field(
        default=None, description="API key with every scope, created when the API starts; at least 20 characters"
    )
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#]+$",
        description="where browsers reach the page, without a slash at the end; needed to sign in with a provider",
    )
    oidc_issuer: str | None = Field(
        default=None, description="OpenID Connect provider with which people sign in to the page; unset: API keys alone"
    )
    oidc_client_id: str | None = Field(default=None, description="of this service at the provider")
    oidc_client_secret: SecretStr | None = Field(default=None, description="unset: a public client, PKCE alone")
    oidc_scopes: str = Field(default="openid profile email", description="scopes that the provider is asked for")
    oidc_roles_claim: str = Field(default="groups", description="claim of the ID token with a person's roles")
    oidc_roles: dict[str, list[Literal["read", "submit", "admin", "operator"]]] = Field(
        default={},
        description='what people with a role may do, as JSON: {"ml-reviewers": ["read", "submit"]}; `*`: everybody '
        "whom the provider knows; default: nobody gets in",
    )
    oidc_tenant_claim: str | None = Field(
        default=None, description="claim with a person's tenant; unset: all are of the tenant `default`"
    )
    session_seconds: int = Field(default=8 * 3600, ge=60, description="how long somebody stays signed in")
    s3_endpoint: str | None = Field(default=None, description="S3 endpoint URL; unset: AWS")
    s3_public_endpoint: str | None = Field(
        default=None, description="S3 address for clients, used in links to artifacts; unset: s3_endpoint"
    )
    s3_region: str = Field(default="us-east-1")
    s3_bucket: str = Field(default="layerdrift", min_length=3, description="bucket for records and reports")
    readable_buckets: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="further buckets that s3: URIs may use, comma-separated; `bucket/prefix/` allows only that prefix",
    )
    s3_access_key: SecretStr | None = Field(default=None, description="unset: boto3's default credential chain")
    s3_secret_key: SecretStr | None = Field(default=None)
    log_format: Literal["json", "plain"] = Field(default="json", description="format of log lines")
    metrics_port: int | None = Field(
        default=None, ge=1024, le=65535, description="port for a worker's Prometheus metrics; unset: none"
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="analyses that the embedded stack runs at a time, sharing the cores; default: one for each GPU, "
        "one without",
    )
    quotas: dict[str, Quota] = Field(
        default={},
        description='what tenants may use, as JSON: {"search": {"gpu_seconds": 360000, "storage_bytes": 1e12}}; '
        "`*`: those that are not named",
    )
    retention: Retention = Field(
        default=Retention(),
        description='how long things are kept, as JSON: {"artifacts_days": 30, "uploads_days": 7}; default: for ever',
    )
    scaled_queues: Annotated[list[Literal["gpu", "cpu"]], NoDecode] = Field(
        default=[],
        description="queues whose workers are started when jobs wait there (`gpu`, `cpu`, comma-separated): jobs are "
        "announced there also while no worker listens",
    )
    idle_seconds: int | None = Field(
        default=None, ge=1, description="a worker ends after so long without a job; unset: never"
    )
    scratch_bytes: int = Field(
        default=20 * GIB, ge=2**26, description="disk space that a job may use for activations and sums"
    )
    checkpoint_cache_bytes: int = Field(
        default=40 * GIB,
        ge=0,
        description="disk space for fetched checkpoints that a machine keeps for the next job or attempt; 0: none",
    )
    max_dataset_bytes: int = Field(default=GIB, ge=2**10, description="largest data set file")
    max_model_bytes: int = Field(default=200 * GIB, ge=2**20, description="largest checkpoint, all files together")
    hf_endpoint: str = Field(
        default_factory=lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
        description="hub for hf: URIs; default: HF_ENDPOINT, or Hugging Face's",
    )
    hf_token: SecretStr | None = Field(default=None, description="token for private and gated repositories of the hub")
    mlflow_url: str | None = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI"),
        description="MLflow server for mlflow: URIs; default: MLFLOW_TRACKING_URI",
    )
    mlflow_token: SecretStr | None = Field(default=None, description="bearer token for the MLflow server")
    mlflow_username: str | None = Field(default=None, description="used with the password if the server has no tokens")
    mlflow_password: SecretStr | None = Field(default=None)
    webhook_secrets: dict[str, SecretStr] = Field(
        default={}, description='webhook signing secrets by name, as JSON: {"ci": "whsec_..."} (base64)'
    )
    webhook_hosts: Annotated[list[str], NoDecode] = Field(
        default=[], description="webhook hosts that may be private or use http, comma-separated"
    )
    max_upload_bytes: int = Field(default=20 * GIB, ge=2**10, description="largest upload")
    inspect_memory_bytes: int = Field(
        default=4 * GIB, ge=2**20, description="memory for the model pairs used to inspect texts"
    )
    link_seconds: int = Field(default=3600, ge=1, le=604_800, description="lifetime of links to artifacts")
    max_parameters: int = Field(default=100_000_000_000, ge=1, description="largest model, in parameters")
    report_cache_seconds: int = Field(default=86_400, ge=1, description="how long Redis caches a report")
    checkpoint_seconds: int = Field(
        default=120,
        ge=1,
        description="least time between checkpoints of a long autoencoder training, for another worker to resume from; "
        "saving takes at most a twentieth of the training, so large ones are saved less often",
    )
    lease_seconds: int = Field(
        default=30, ge=3, description="a job is reassigned after its worker has been silent this long"
    )
    cancel_seconds: int = Field(
        default=60, ge=1, description="a cancelled job's process is ended if the job does not stop within this time"
    )
    stall_seconds: int = Field(
        default=1800,
        ge=1,
        description="a job that reports no progress for this long is taken from its worker process, which is ended",
    )
    max_attempts: int = Field(default=3, ge=1, description="a job fails after losing this many workers")

    @field_validator("model_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("s3_endpoint", "s3_public_endpoint", "public_url", "oidc_issuer", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        """As a compose file gives what its own environment lacks."""
        return value or None

    @field_validator("webhook_hosts", "allowed_hosts", "readable_buckets", "scaled_queues", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _plain_names(cls, value: list[str]) -> list[str]:
        for name in value:
            if "/" in name or name.count(":") == 1 or "]:" in name:
                raise ValueError(f"{name!r} is not a host name: leave out scheme and port")
        return [name.strip("[]").lower() for name in value]

    @field_validator("webhook_secrets")
    @classmethod
    def _base64(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            try:
                key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
            except ValueError as error:
                raise ValueError(f"the secret {name!r} is not base64") from error
            if len(key) < MIN_SECRET_BYTES:
                raise ValueError(
                    f"the secret {name!r} has {len(key)} bytes; at least {MIN_SECRET_BYTES} are needed (24 or more are "
                    "recommended)"
                )
        return value

    @model_validator(mode="after")
    def _whole_sign_in(self) -> Settings:
        missing = [name for name in ("public_url", "oidc_client_id") if getattr(self, name) is None]
        if self.oidc_issuer is not None and missing:
            raise ValueError(
                "signing in with oidc_issuer also needs "
                + " and ".join(f"LAYERDRIFT_{name.upper()}" for name in missing)
            )
        return self

    @property
    def roots(self) -> list[Path]:
        """The folders that file: URIs may name, as real paths."""
        chosen = self.model_roots or [self.home / name for name in ("models", "data", "demo", "demo-llm")]
        return [path.resolve() for path in chosen]

    @property
    def scratch(self) -> Path:
        """Where a worker keeps what it needs for the time of a job."""
        return self.home.resolve() / "scratch"

    @property
    def checkpoint_cache(self) -> Path:
        """Where fetched checkpoints are kept; on the disk of the scratch."""
        return self.home.resolve() / "checkpoint-cache"
