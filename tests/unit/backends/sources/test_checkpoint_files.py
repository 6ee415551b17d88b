from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from backends.sources.checkpoint_files import TOKENIZER_FILES, file_sha256, fingerprint

MODEL = {"config.json": "{}", "model.safetensors": "weights", "vocab.txt": "[PAD]"}


def written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    "other",
    [
        MODEL | {"vocab.txt": "[UNK]"},
        MODEL | {"README.md": "about", "optimizer.pt": "state"},
        {name: MODEL[name] for name in ("config.json", "model.safetensors")},
    ],
    ids=["another vocabulary", "more files", "no vocabulary"],
)
def test_a_model_is_the_same_by_its_config_and_weights_alone(tmp_path: Path, other: dict[str, str]) -> None:
    assert fingerprint(written(tmp_path / "a", MODEL)) == fingerprint(written(tmp_path / "b", other))


@pytest.mark.parametrize(
    "other",
    [
        MODEL | {"config.json": "{ }"},
        MODEL | {"model.safetensors": "weightz"},
        MODEL | {"model-00002.safetensors": ""},
        {"config.json": "{}", "weights.safetensors": "weights"},
        {"config.json": "weights", "model.safetensors": "{}"},
    ],
    ids=["config", "weights", "an empty shard", "another name", "contents swapped"],
)
def test_a_model_is_another_by_its_config_its_weights_or_their_names(tmp_path: Path, other: dict[str, str]) -> None:
    assert fingerprint(written(tmp_path / "a", MODEL)) != fingerprint(written(tmp_path / "b", other))


def test_a_model_is_the_same_in_whatever_order_the_disk_lists_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = written(tmp_path / "a", MODEL), []
    files = list(folder.iterdir())
    for listed in (files, files[::-1]):
        monkeypatch.setattr(Path, "iterdir", lambda _, listed=listed: iter(listed))
        found.append(fingerprint(folder))
    assert found[0] == found[1]


@pytest.mark.parametrize("content", [b"", b"weights" * 100_000])
def test_the_sha256_is_that_of_the_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_no_file_of_a_tokenizer_could_be_code_or_a_pickle() -> None:
    assert not [name for name in TOKENIZER_FILES if name.endswith((".py", ".pkl", ".bin", ".pt"))]
