"""Connections to the stack's real Valkey and SeaweedFS, in a database and a bucket that its own worker does not see."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from deploy.embedded.stack import Stack
from layerdrift.backends import keys
from layerdrift.backends.deployment import Deployment
from layerdrift.backends.settings import Settings


@pytest.fixture
def settings(stack: Stack, tmp_path: Path, roots: Path) -> Settings:
    return stack.settings.model_copy(
        update={
            "redis_url": stack.settings.redis_url.removesuffix("/0") + "/1",
            "s3_bucket": "integration",
            "home": tmp_path,
            "model_roots": [roots],
        }
    )


@pytest.fixture
def valkey(settings: Settings) -> redis.Redis:
    """The database of these tests, empty, as one that has nothing to bring back from the bucket of earlier tests."""
    client = redis.Redis.from_url(settings.redis_url)
    client.flushdb()
    client.set(keys.RESTORED, b"")
    return client


@pytest.fixture
def deployment(settings: Settings, valkey: redis.Redis) -> Deployment:
    made = Deployment.connect(settings)
    made.blobs.ensure_bucket()
    return made
