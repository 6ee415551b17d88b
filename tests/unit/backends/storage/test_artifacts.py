from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from backends.storage import artifact_names, key_names
from backends.storage.artifacts import Artifacts, ArtifactStore
from backends.storage.key_names import Owned
from layerdrift.contract.errors import NotFoundError
from tests.builders.stores import MemoryBlobs

OWNED = Owned("default", "an_x")


class LinkedBlobs(MemoryBlobs):
    """A bucket that gives links."""

    def link(self, key: str, seconds: int) -> str:
        return f"https://s3.test/{key}?seconds={seconds}"


@pytest.fixture
def blobs() -> LinkedBlobs:
    return LinkedBlobs()


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_what_was_kept_is_listed_by_name_with_links_to_its_bytes(blobs: LinkedBlobs, tmp_path: Path) -> None:
    artifacts = Artifacts(blobs, OWNED)
    weights = write(tmp_path, "sae_weights.safetensors", b"weights")
    name = artifact_names.sae_file("base/layer-00", weights.name)
    assert artifacts.put_named(name, weights) == hashlib.sha256(b"weights").hexdigest()
    artifacts.put_named(artifact_names.LATENTS, write(tmp_path, "latents.parquet", b"rows"))
    artifacts.put("checkpoint/vocab.txt", "with the last of keys/vocab.txt", write(tmp_path, "vocab.txt", b"[PAD]"))
    artifacts.finish()
    listed = ArtifactStore(blobs).listed(OWNED, 60)
    assert [(one.name, one.media_type, one.bytes) for one in listed] == [
        ("checkpoint/vocab.txt", "text/plain", 5),
        ("latents.parquet", "application/vnd.apache.parquet", 4),
        (name, "application/octet-stream", 7),
    ]
    for one in listed:
        key = one.url.removeprefix("https://s3.test/").removesuffix("?seconds=60")
        assert hashlib.sha256(blobs.objects[key]).hexdigest() == one.sha256


def test_a_report_is_listed_by_the_object_that_holds_it(blobs: LinkedBlobs) -> None:
    artifacts = Artifacts(blobs, OWNED)
    artifacts.put_report("html", b"<html>")
    artifacts.finish()
    (listed,) = ArtifactStore(blobs).listed(OWNED, 60)
    assert (listed.name, listed.media_type, listed.bytes) == ("report.html", "text/html; charset=utf-8", 6)
    assert key_names.report_object(OWNED, "html") in listed.url


def test_a_file_of_an_unknown_kind_is_listed_as_bytes(blobs: LinkedBlobs, tmp_path: Path) -> None:
    artifacts = Artifacts(blobs, OWNED)
    artifacts.put_named("spm.model", write(tmp_path, "spm.model", b""))
    artifacts.finish()
    (listed,) = ArtifactStore(blobs).listed(OWNED, 60)
    assert (listed.media_type, listed.bytes) == ("application/octet-stream", 0)


def test_a_file_that_is_kept_again_is_listed_once_as_it_is_now(blobs: LinkedBlobs, tmp_path: Path) -> None:
    artifacts = Artifacts(blobs, OWNED)
    for content in (b"first", b"second"):
        artifacts.put_named(artifact_names.LATENTS, write(tmp_path, "latents.parquet", content))
    artifacts.finish()
    assert [one.bytes for one in ArtifactStore(blobs).listed(OWNED, 60)] == [6]


def test_there_is_no_list_before_all_files_are_there(blobs: LinkedBlobs, tmp_path: Path) -> None:
    Artifacts(blobs, OWNED).put_named(artifact_names.LATENTS, write(tmp_path, "latents.parquet", b"rows"))
    with pytest.raises(NotFoundError, match="an_x has no list of artifacts"):
        ArtifactStore(blobs).listed(OWNED, 60)


def test_artifacts_of_another_tenant_are_not_found(blobs: LinkedBlobs) -> None:
    Artifacts(blobs, OWNED).finish()
    assert ArtifactStore(blobs).listed(OWNED, 60) == []
    with pytest.raises(NotFoundError):
        ArtifactStore(blobs).listed(Owned("other", OWNED.id), 60)
