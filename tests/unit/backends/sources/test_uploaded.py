"""Zips as folders, out of memory; buckets in tests/integration/test_stores."""

from __future__ import annotations

import io
import zipfile
from typing import cast

import pytest

from backends.sources.checkpoint_folder import find_checkpoint, folder_of
from backends.sources.locations import Location, PinnedFile
from backends.sources.uploaded import Archive, UploadedFile
from backends.storage.blobs import BlobStore

CONFIG = b'{"model_type": "bert"}'


class OneObject:
    """A bucket and an upload at once: some bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self._content[start:] if length is None else self._content[start : start + length]

    def files(self) -> list[PinnedFile]:
        return [PinnedFile(name="model.zip", size=len(self._content), version="sha256:x")]


def archive(files: dict[str, bytes]) -> Archive:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    stub = OneObject(buffer.getvalue())
    return Archive(cast(UploadedFile, stub), cast(BlobStore, stub), "key")


def checkpoint(location: Location) -> dict[str, bytes]:
    """The files of the checkpoint in a location."""
    folder = folder_of(location, find_checkpoint(location, "upload://x", "/base/uri"))
    return {file.name: folder.read(file.name, file.size) for file in folder.files()}


def test_a_zip_of_the_macos_finder_is_read() -> None:
    made = archive(
        {
            "model/config.json": CONFIG,
            "model/model.safetensors": b"w",
            "model/.DS_Store": b"junk",
            "__MACOSX/model/._config.json": b"junk",
            "__MACOSX/._model": b"junk",
        }
    )
    assert checkpoint(made) == {"config.json": CONFIG, "model.safetensors": b"w"}


def test_a_zip_with_subfolders_is_read() -> None:
    made = archive({"config.json": CONFIG, "model.safetensors": b"w", "1_Pooling/config.json": b"{}", "runs/a": b""})
    assert checkpoint(made) == {"config.json": CONFIG, "model.safetensors": b"w"}
    assert made.folders() == ["1_Pooling", "runs"]
    inner = archive({"st/0_Transformer/config.json": CONFIG, "st/1_Pooling/config.json": b"{}", "st/modules.json": b""})
    assert checkpoint(inner) == {"config.json": CONFIG}


def test_the_folder_that_holds_all_files_may_lie_deep() -> None:
    assert checkpoint(archive({"home/me/work/models/run/config.json": CONFIG})) == {"config.json": CONFIG}


@pytest.mark.parametrize("name", ["model\\config.json", "./config.json", "/model/config.json"])
def test_odd_spellings_of_paths_are_read(name: str) -> None:
    assert checkpoint(archive({name: CONFIG})) == {"config.json": CONFIG}


@pytest.mark.parametrize("name", ["../config.json", "a/../../config.json", "a\\..\\config.json"])
def test_files_above_the_zip_are_not_shown(name: str) -> None:
    made = archive({name: CONFIG, "model.safetensors": b"w"})
    assert [file.name for file in made.files()] == ["model.safetensors"]
    assert made.folders() == []
