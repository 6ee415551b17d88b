"""Names of the files of a checkpoint, and the hash of those that are there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from backends.sources.checkpoint_folder import (
    CONFIG,
)

WEIGHTS_SUFFIX = ".safetensors"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"

VOCABULARIES = {
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "bpe.codes",
}

TOKENIZER_FILES = {
    *VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.bpe",
    "chat_template.jinja",
}


def generation_config_of(folder: Path) -> Path:
    """Where a staged checkpoint's generation_config.json lies: beside its folder, so that no model is opened by it."""
    return folder.with_name(f"{folder.name}-{GENERATION_CONFIG}")


def fingerprint(folder: Path) -> str:
    """Which model lies in a folder: sha256 over the names and sha256 of its config and weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == CONFIG or path.suffix == WEIGHTS_SUFFIX:
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
