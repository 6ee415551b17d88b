"""Fixtures of the tests with real servers: tiny models on disk, and the embedded stack.

Unit tests load this file too, so it imports torch and the servers only where a fixture needs them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts into the background without it

if TYPE_CHECKING:
    import redis

    from backends.deployment import Deployment
    from backends.settings import Settings
    from deploy.embedded.stack import Stack
    from layerdrift.sdk import Client


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder that the test stack's file: URIs may name."""
    return tmp_path_factory.mktemp("roots").resolve()


@pytest.fixture(scope="session")
def base_folder(roots: Path) -> Path:
    """A tiny BERT on disk."""
    from tests.builders.models import save_model, tiny_bert

    return save_model(tiny_bert(0), roots / "base")


@pytest.fixture(scope="session")
def noised_folder(roots: Path) -> Path:
    """The same model with noise on the weights of block 2 alone."""
    from tests.builders.models import add_noise, save_model, tiny_bert

    model = tiny_bert(0)
    add_noise(model, block=2)
    return save_model(model, roots / "noised")


@pytest.fixture(scope="session")
def start_stack(roots: Path) -> Callable[..., Stack]:
    """Makes a stack with its data in a folder, on free ports, with other variables; to be used as a context manager."""

    from deploy.embedded.stack import Stack

    def make(home: Path, **variables: str) -> Stack:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
        return Stack({**clean, "LAYERDRIFT_HOME": str(home), "LAYERDRIFT_MODEL_ROOTS": str(roots), **variables})

    return make


@pytest.fixture(scope="session")
def stack(start_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Valkey, SeaweedFS, the API and a worker, for the whole session."""
    home = tmp_path_factory.mktemp("home")
    with start_stack(home, LAYERDRIFT_READABLE_BUCKETS="sources,no-such-bucket") as running:
        yield running


@pytest.fixture(scope="session")
def keyed(start_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with an operator's key and a secret for webhooks, both from the environment."""
    from tests.builders.operator import ADMIN, WEBHOOK_SECRETS

    home = tmp_path_factory.mktemp("keyed")
    with start_stack(home, LAYERDRIFT_ADMIN_KEY=ADMIN, LAYERDRIFT_WEBHOOK_SECRETS=WEBHOOK_SECRETS) as running:
        yield running


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[Client]:
    """A client of the session's stack."""
    from layerdrift.sdk import Client

    with Client(stack.url) as connected:
        yield connected


@pytest.fixture
def settings(stack: Stack, tmp_path: Path, roots: Path) -> Settings:
    return stack.settings.model_copy(
        update={
            "redis_url": stack.settings.redis_url.removesuffix("/0") + "/1",
            "s3_bucket": "integration",
            "home": tmp_path,
            "model_roots": [roots],
            "readable_buckets": ["models"],
        }
    )


@pytest.fixture
def valkey(settings: Settings) -> redis.Redis:
    """The database of these tests, empty, as one that has nothing to bring back from the bucket of earlier tests."""
    import redis

    from backends.storage import key_names

    client = redis.Redis.from_url(settings.redis_url)
    client.flushdb()
    for kind in (key_names.JOBS, key_names.STUDIES):
        client.set(key_names.restored(kind), b"")
    return client


@pytest.fixture
def deployment(settings: Settings, valkey: redis.Redis) -> Deployment:
    from backends.deployment import Deployment

    made = Deployment.connect(settings)
    made.blobs.ensure_bucket()
    return made


@pytest.fixture
def store(deployment: Deployment) -> Iterator[Deployment]:
    """A deployment without API keys, before and after."""
    from backends.storage import key_names

    for prefix in (key_names.API_KEY_OBJECTS, key_names.KEYS_NEEDED):
        deployment.blobs.delete_all(prefix)
    yield deployment
    for prefix in (key_names.API_KEY_OBJECTS, key_names.KEYS_NEEDED):
        deployment.blobs.delete_all(prefix)
