"""A backup, and what it brings back when everything else is lost."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backends.api_keys import new_key
from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.settings import Settings
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError
from layerdrift.contract.key import Scope
from service import backup
from service.backup import MANIFEST, restore, save
from tests.builders.records import record


def another(settings: Settings) -> Deployment:
    """A deployment with a bucket of its own."""
    bucket = f"backup-{uuid.uuid4().hex[:12]}"
    made = Deployment.connect(settings.model_copy(update={"s3_bucket": bucket}))
    made.blobs.ensure_bucket()
    return made


@pytest.fixture
def lived(settings: Settings, valkey: redis.Redis) -> Iterator[Deployment]:
    """A deployment with two analyses, one of them finished, and a key."""
    made = another(settings)
    yield made
    made.blobs.delete_all("")


@pytest.fixture
def fresh(settings: Settings, valkey: redis.Redis) -> Iterator[Deployment]:
    """A deployment whose bucket is empty."""
    made = another(settings)
    yield made
    made.blobs.delete_all("")


def finished(deployment: Deployment, age: float = 60) -> JobRecord:
    job = record(age_seconds=age)
    deployment.jobs.submit(job)
    deployment.reports.put(job.owned, "json", json.dumps({"of": job.id}).encode())
    deployment.blobs.put(key_names.artifact_object(job.owned, "scores.parquet"), b"numbers", "")
    return deployment.jobs.update(job.id, lambda found: found.ended(Status.SUCCEEDED))


def everything(blobs: BlobStore) -> dict[str, bytes]:
    return {blob.key: blobs.get(blob.key) for prefix in key_names.LASTING for blob in blobs.list(prefix)}


def test_all_that_lasts_is_back_after_everything_was_lost(
    lived: Deployment, fresh: Deployment, valkey: redis.Redis, tmp_path: Path
) -> None:
    done, waiting = finished(lived), record()
    lived.jobs.submit(waiting)
    secret = lived.keys.create(new_key(name="ci", scopes=[Scope.READ]))
    before = everything(lived.blobs)
    assert len(save(lived.blobs, tmp_path / "backup").objects) == len(before) >= 5
    lived.blobs.delete_all("")
    valkey.flushdb()
    restore(fresh, tmp_path / "backup")
    assert everything(fresh.blobs) == before
    assert fresh.jobs.restore() == 2
    assert fresh.jobs.get(done.id) == done
    assert json.loads(fresh.reports.get(done.owned, "json").body) == {"of": done.id}
    assert fresh.jobs.open_ids() == [waiting.id]
    assert fresh.keys.knows(secret)


def test_a_second_backup_fetches_what_changed_and_forgets_what_was_deleted(
    lived: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = finished(lived)
    save(lived.blobs, tmp_path)
    for prefix in (key_names.artifact_prefix, key_names.report_prefix):
        lived.blobs.delete_all(prefix(gone.owned))
    lived.jobs.remove(gone)
    kept = finished(lived)
    fetched: list[str] = []
    get_file = lived.blobs.get_file

    def noted(key: str, path: Path) -> None:
        fetched.append(key)
        get_file(key, path)

    monkeypatch.setattr(lived.blobs, "get_file", noted)
    made = save(lived.blobs, tmp_path)
    assert len(fetched) == len(made.objects) == 3
    assert all(kept.id in key for key in fetched)
    assert len(list((tmp_path / "objects").glob("*/*"))) == 3
    fetched.clear()
    assert save(lived.blobs, tmp_path).objects == made.objects
    assert fetched == []


def test_what_is_deleted_meanwhile_is_no_part_of_the_backup(
    lived: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = finished(lived)
    report = key_names.report_object(job.owned, "json")
    get_file = lived.blobs.get_file

    def deleted(key: str, path: Path) -> None:
        if key == report:
            raise NotFoundError(f"{key} does not exist")
        get_file(key, path)

    monkeypatch.setattr(lived.blobs, "get_file", deleted)
    assert report not in save(lived.blobs, tmp_path).objects


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest", "nonsense", "never finished"])
def test_of_a_backup_that_is_not_whole_nothing_is_written(
    lived: Deployment, fresh: Deployment, tmp_path: Path, damage: str
) -> None:
    finished(lived)
    save(lived.blobs, tmp_path)
    some = next((tmp_path / "objects").glob("*/*"))
    match damage:
        case "changed":
            some.write_bytes(b"something else")
        case "missing":
            some.unlink()
        case "nonsense":
            (tmp_path / MANIFEST).write_text("{}")
        case _:
            (tmp_path / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"files are missing or damaged|holds no backup"):
        restore(fresh, tmp_path)
    assert everything(fresh.blobs) == {}


def test_a_bucket_that_is_in_use_is_not_written_over(lived: Deployment, fresh: Deployment, tmp_path: Path) -> None:
    finished(lived)
    save(lived.blobs, tmp_path)
    own = finished(fresh)
    before = everything(fresh.blobs)
    with pytest.raises(ConflictError, match="holds analyses, studies or keys"):
        restore(fresh, tmp_path)
    assert everything(fresh.blobs) == before
    assert fresh.jobs.get(own.id) == own


def test_a_folder_with_something_else_in_it_is_left_alone(lived: Deployment, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="neither empty nor a backup"):
        save(lived.blobs, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_others_have_in_the_bucket_is_not_copied(lived: Deployment, tmp_path: Path) -> None:
    finished(lived)
    lived.blobs.put("models/large.safetensors", b"weights", "")
    assert not any(key.startswith("models/") for key in save(lived.blobs, tmp_path).objects)


def test_both_commands_say_what_they_did(
    lived: Deployment,
    fresh: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished(lived)
    monkeypatch.setattr(Deployment, "connect", lambda _: lived)
    assert backup.main(["save", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("saved 3 objects, ")
    monkeypatch.setattr(Deployment, "connect", lambda _: fresh)
    assert backup.main(["restore", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("restored 3 objects, ")
    assert backup.main(["restore", str(tmp_path)]) == 1
    assert "holds analyses, studies or keys" in capsys.readouterr().err
