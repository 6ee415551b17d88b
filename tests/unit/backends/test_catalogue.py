from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from backends import catalogue
from backends.catalogue import Catalogue
from backends.jobs.listing import JobListing
from backends.jobs.records import EVERY, JobRecord, Wanted
from backends.settings import Settings
from backends.sources.uri_resolver import Opener
from backends.storage import key_names
from backends.storage.blobs import Children
from backends.storage.uploads import INLINE_NAME, UploadStore
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.estimate import Source
from layerdrift.contract.upload import UploadRequest
from tests.builders.records import record
from tests.builders.stores import MemoryBlobs, MemoryJobs


class FolderedBlobs(MemoryBlobs):
    """A bucket that can be listed by folder."""

    def children(self, prefix: str) -> Children:
        below = [key[len(prefix) :] for key in self.objects if key.startswith(prefix)]
        return Children([], sorted({f"{prefix}{name.split('/')[0]}/" for name in below if "/" in name}))


class OnePage(JobListing):
    """A list whose records are all on one page."""

    def __init__(self, *records: JobRecord) -> None:
        super().__init__(cast(redis.Redis, None), MemoryJobs(*records))
        self._shown = records

    def page(
        self, tenant: str, limit: int, cursor: str | None, wanted: Wanted = EVERY
    ) -> tuple[list[JobRecord], str | None]:
        return [one for one in self._shown if one.tenant == tenant and wanted.admits(one)][:limit], None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder.resolve()


@pytest.fixture
def blobs() -> FolderedBlobs:
    return FolderedBlobs()


@pytest.fixture
def make(root: Path, blobs: FolderedBlobs) -> Callable[..., Catalogue]:
    def made(*records: JobRecord, mlflow_url: str | None = None) -> Catalogue:
        settings = Settings(model_roots=[root]).model_copy(update={"mlflow_url": mlflow_url})
        return Catalogue(settings, blobs, OnePage(*records), UploadStore(blobs, 1000))

    return made


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("{}")


def names(sources: list[Source], kind: str) -> list[str]:
    return [source.name for source in sources if source.kind == kind]


def test_folders_with_a_config_are_models_and_tables_are_data_sets(make: Callable[..., Catalogue], root: Path) -> None:
    write(root, "bert/config.json", "runs/lora/adapter_config.json", "notes/readme.md", "weights.bin")
    write(root, "reviews.csv", "more/rows.jsonl.gz", "more/table.parquet", "more/table.parquet.gz")
    found = make().of("default")
    assert names(found.models, "folder") == ["bert", "runs/lora"]
    assert names(found.datasets, "file") == ["reviews.csv", "more/rows.jsonl.gz", "more/table.parquet"]


def test_files_of_a_checkpoint_are_no_data_sets(make: Callable[..., Catalogue], root: Path) -> None:
    write(root, "bert/config.json", "bert/vocab.txt", "bert/tokenizer.json")
    assert make().of("default").datasets == []


def test_a_checkpoint_of_links_to_files_below_the_root_is_a_model(make: Callable[..., Catalogue], root: Path) -> None:
    """As the cache of the Hugging Face Hub keeps its snapshots."""
    write(root, "blobs/abc", "snapshots/1/other.md")
    os.symlink(root / "blobs" / "abc", root / "snapshots" / "1" / "config.json")
    assert names(make().of("default").models, "folder") == ["snapshots/1"]


def test_layers_and_snapshots_inside_a_checkpoint_are_no_models(make: Callable[..., Catalogue], root: Path) -> None:
    write(root, "st/config.json", "st/1_Pooling/config.json", "run/config.json", "run/checkpoint-5/config.json")
    assert names(make().of("default").models, "folder") == ["run", "st"]


def test_a_root_that_is_a_checkpoint_goes_by_its_own_name(make: Callable[..., Catalogue], root: Path) -> None:
    write(root, "config.json")
    assert names(make().of("default").models, "folder") == ["root"]


def test_what_is_listed_can_be_opened_whatever_its_name(make: Callable[..., Catalogue], root: Path) -> None:
    write(root, "my models/naïve #1/config.json", "what?.csv", "100%.csv")
    found = make().of("default")
    opener = Opener(Settings(model_roots=[root]), MemoryBlobs(), "default")
    for source in found.models:
        assert [file.name for file in opener.open(source.uri, "/base/uri", folder=True).files()] == ["config.json"]
    for source in found.datasets:
        assert [file.name for file in opener.open(source.uri, "/dataset/uri", folder=False).files()] == [source.name]
    assert (len(found.models), len(found.datasets)) == (1, 2)


def test_hidden_files_and_links_that_lead_outside_are_left_out(
    make: Callable[..., Catalogue], root: Path, tmp_path: Path
) -> None:
    write(root, ".cache/config.json", ".hidden.csv", "shown/.git/config.json")
    write(tmp_path, "outside/config.json")
    os.symlink(tmp_path / "outside", root / "link")
    os.symlink(root, root / "loop")
    write(tmp_path, "outside.csv")
    os.symlink(tmp_path / "outside.csv", root / "linked.csv")
    found = make().of("default")
    assert (found.models, found.datasets) == ([], [])


def test_folders_are_searched_four_levels_deep(make: Callable[..., Catalogue], root: Path) -> None:
    write(root, "1/2/3/4/config.json", "a/b/c/d/e/config.json")
    assert names(make().of("default").models, "folder") == ["1/2/3/4"]


def test_a_root_with_very_many_folders_is_searched_in_part(
    make: Callable[..., Catalogue], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "MAX_FOLDERS", 4)
    write(root, *(f"{number}/config.json" for number in range(9)))
    assert names(make().of("default").models, "folder") == ["0", "1", "2"]  # the root is the first


def test_no_more_than_so_many_are_listed(
    make: Callable[..., Catalogue], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "MOST", 2)
    write(root, *(f"{number}.csv" for number in range(5)), *(f"{number}/config.json" for number in range(5)))
    found = make().of("default")
    assert (len(found.models), len(found.datasets)) == (2, 2)


def test_a_root_that_is_not_there_lists_nothing(make: Callable[..., Catalogue], root: Path) -> None:
    root.rmdir()
    assert make().of("default").models == []


def test_checkpoints_of_earlier_fine_tunes_are_listed_while_their_files_are_there(
    make: Callable[..., Catalogue], blobs: FolderedBlobs
) -> None:
    done, removed, failed, others = (record() for _ in range(4))
    done, removed = (one.ended(Status.SUCCEEDED) for one in (done, removed))
    others = others.ended(Status.SUCCEEDED).model_copy(update={"tenant": "team"})
    for one in (done, failed, others):
        blobs.put(f"{key_names.checkpoint_prefix(one.owned)}config.json", b"{}", "application/json")
    found = make(done, removed, failed.ended(Status.FAILED), others).of("default").models
    assert [source.uri for source in found] == [f"s3://bucket/{key_names.checkpoint_prefix(done.owned)}"]
    assert names(found, "checkpoint") == [done.title]


def test_zips_are_models_other_uploads_are_data_sets_and_unfinished_ones_neither(
    make: Callable[..., Catalogue], blobs: FolderedBlobs
) -> None:
    uploads = UploadStore(blobs, 1000)
    for number, name in enumerate(["model.zip", "rows.csv", "rows.zip.csv"]):
        uploads.keep_inline("default", bytes([number]), name)
    uploads.keep_inline("default", b"inline", INLINE_NAME)
    uploads.keep_inline("team", b"theirs", "theirs.csv")
    uploads.announce("default", UploadRequest(filename="waiting.csv"))
    found = make().of("default")
    assert names(found.models, "upload") == ["model.zip"]
    assert sorted(names(found.datasets, "upload")) == ["rows.csv", "rows.zip.csv"]


def test_registered_models_are_listed_and_a_registry_that_is_away_hides_nothing_else(
    make: Callable[..., Catalogue], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [["model/3"], UnavailableError("the MLflow could not be reached")]

    def registered(_: Opener, most: int) -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(list[str], answer)

    monkeypatch.setattr(Opener, "registered_models", registered)
    write(root, "bert/config.json")
    there, away = (make(mlflow_url="http://mlflow.invalid").of("default").models for _ in range(2))
    assert [(source.uri, source.kind) for source in there if source.kind == "registered"] == [
        ("mlflow://model/3", "registered")
    ]
    assert [source.name for source in away] == ["bert"]
    assert names(make().of("default").models, "registered") == []  # without a server nobody is asked


def test_sources_can_be_sent(make: Callable[..., Catalogue], root: Path) -> None:
    write(root, "bert/config.json")
    assert json.loads(make().of("default").model_dump_json())["models"][0]["kind"] == "folder"
