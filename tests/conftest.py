"""Fixtures shared by all tests: tiny real models with a tokenizer, texts, and the embedded stack with real servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import torch
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedModel, logging

from backends.deployment import Deployment
from backends.settings import Settings
from backends.storage import key_names
from deploy.embedded.stack import Stack
from layerdrift.sdk import Client

logging.set_verbosity_error()
logging.disable_progress_bar()

WORDS = (
    "the a film movie plot actor scene story is was not very good bad great awful dull bright slow fast warm cold "
    "funny sad and but with without for every no some it this that feels looks sounds works fails"
).split()
HIDDEN, BLOCKS = 32, 3


def make_texts(count: int, seed: int = 0, length: int = 9) -> list[str]:
    """Random sentences over WORDS, all of different lengths around `length`."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(count):
        size = int(torch.randint(length // 2, length * 2, (), generator=generator))
        texts.append(" ".join(WORDS[i] for i in torch.randint(len(WORDS), (size,), generator=generator).tolist()))
    return texts


def tiny_tokenizer(folder: Path) -> BertTokenizer:
    """A word-level BERT tokenizer over WORDS."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return BertTokenizer(vocab=str(vocabulary), model_max_length=64)


def tiny_bert(seed: int = 0, blocks: int = BLOCKS, hidden: int = HIDDEN) -> BertModel:
    """A randomly initialised BERT, in evaluation mode; weights large enough for its blocks to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(WORDS) + 5,
            hidden_size=hidden,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        model = BertModel(config)
        model.eval()
        return model


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    """Writes a model and the tiny tokenizer in transformers' layout."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tiny_tokenizer(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder that the test stack's file: URIs may name."""
    return tmp_path_factory.mktemp("roots").resolve()


@pytest.fixture(scope="session")
def base_folder(roots: Path) -> Path:
    """A tiny BERT on disk."""
    return save_model(tiny_bert(0), roots / "base")


@pytest.fixture(scope="session")
def noised_folder(roots: Path) -> Path:
    """The same model with noise on the weights of block 2 alone."""
    model = tiny_bert(0)
    add_noise(model, block=2)
    return save_model(model, roots / "noised")


def add_noise(model: BertModel, block: int, scale: float = 0.5) -> None:
    """Adds noise to the weights of one block, counted from 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.encoder.layer[block - 1].parameters():
            parameter.add_(scale * parameter.std() * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def start_stack(roots: Path) -> Callable[..., Stack]:
    """Makes a stack with its data in a folder, on free ports, with other variables; to be used as a context manager."""

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
def client(stack: Stack) -> Iterator[Client]:
    """A client of the session's stack."""
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
    client = redis.Redis.from_url(settings.redis_url)
    client.flushdb()
    client.set(key_names.RESTORED, b"")
    return client


@pytest.fixture
def deployment(settings: Settings, valkey: redis.Redis) -> Deployment:
    made = Deployment.connect(settings)
    made.blobs.ensure_bucket()
    return made


@pytest.fixture
def store(deployment: Deployment) -> Iterator[Deployment]:
    """A deployment without API keys, before and after."""
    for prefix in (key_names.API_KEY_OBJECTS, key_names.KEYS_NEEDED):
        deployment.blobs.delete_all(prefix)
    yield deployment
    for prefix in (key_names.API_KEY_OBJECTS, key_names.KEYS_NEEDED):
        deployment.blobs.delete_all(prefix)
