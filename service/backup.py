"""A deployment's bucket as a folder, and back: `python -m service.backup save|restore FOLDER`.

Everything that lasts is in the bucket; Redis is filled from it. A folder that holds an earlier backup is brought up to
date: what did not change is not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import redis
from pydantic import BaseModel, ValidationError

from backends.deployment import Deployment
from backends.settings import Settings
from backends.storage import key_names
from backends.storage.blobs import BlobInfo, BlobStore
from layerdrift import __version__
from layerdrift.contract.errors import ConflictError, InputError, LayerdriftError, NotFoundError

AT_ONCE = 8
MANIFEST = "manifest.json"


class Saved(BaseModel):
    """An object of the bucket as it was saved."""

    bytes: int
    etag: str
    sha256: str


class Manifest(BaseModel):
    """What a folder holds, by key; the file of an object is named by the hash of its key."""

    version: str
    finished_at: datetime
    objects: dict[str, Saved]


def save(blobs: BlobStore, folder: Path) -> Manifest:
    """Copies every object into a folder. Records come first: what they speak of was there before them.

    Raises:
        InputError: the folder holds something else.
        UnavailableError: S3 is unavailable; what was copied stays for the next try.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = _before(folder)
    found = dict[str, Saved]()
    for part in (_records(_listed(blobs)), _others(_listed(blobs))):
        with ThreadPoolExecutor(AT_ONCE) as threads:
            saved = threads.map(lambda blob: (blob.key, _saved(blobs, blob, folder, before)), part)
            found |= {key: one for key, one in saved if one is not None}
    made = Manifest(version=__version__, finished_at=datetime.now(UTC), objects=found)
    _replace(folder / MANIFEST, made.model_dump_json(indent=1).encode())
    names = {_name(key) for key in found}
    for path in (folder / "objects").glob("*/*"):
        if path.name not in names:
            path.unlink()
    return made


def restore(deployment: Deployment, folder: Path) -> Manifest:
    """Puts every object of a backup into an empty bucket, records last; Redis is filled from there.

    Raises:
        InputError: the folder is no whole backup; nothing was written.
        ConflictError: the bucket holds analyses, studies or keys.
        UnavailableError: S3 or Redis is unavailable; it can be done again into a bucket that is emptied first.
    """
    blobs, found = deployment.blobs, _manifest(folder)
    _require_whole(found, folder)
    deployment.jobs.check()
    blobs.ensure_bucket()
    if _listed(blobs):
        raise ConflictError(f"the bucket {blobs.bucket} holds analyses, studies or keys: restore into another one")
    records = {key for key in found.objects if _is_record(key)}
    for keys in (sorted(set(found.objects) - records), sorted(records)):
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda key: blobs.put_file(key, _file(folder, key)), keys))
    for store in (deployment.jobs, deployment.studies):
        store.look_again()
    return found


def _before(folder: Path) -> dict[str, Saved]:
    """What an earlier backup left in the folder."""
    if (folder / MANIFEST).exists():
        return _manifest(folder).objects
    if any(path.name != "objects" for path in folder.iterdir()):
        raise InputError.at("/folder", f"{folder} is neither empty nor a backup")
    return {}


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError.at("/folder", f"{folder} holds no backup: {MANIFEST} is missing or damaged") from error


def _require_whole(found: Manifest, folder: Path) -> None:
    """Raises InputError unless every file is there with the bytes that it was saved with."""

    def is_damaged(key: str) -> bool:
        path = _file(folder, key)
        return not path.is_file() or _sha256(path) != found.objects[key].sha256

    with ThreadPoolExecutor(AT_ONCE) as threads:
        damaged = [key for key, bad in zip(found.objects, threads.map(is_damaged, found.objects), strict=True) if bad]
    if damaged:
        raise InputError.at(
            "/folder", f"{len(damaged)} of {len(found.objects)} files are missing or damaged, the first {damaged[0]}"
        )


def _saved(blobs: BlobStore, blob: BlobInfo, folder: Path, before: dict[str, Saved]) -> Saved | None:
    """Copies one object, unless it is there; None where somebody deleted it meanwhile."""
    path, known = _file(folder, blob.key), before.get(blob.key)
    if known is not None and (known.bytes, known.etag) == (blob.size, blob.etag) and path.is_file():
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    fetched = path.with_suffix(".part")
    try:
        blobs.get_file(blob.key, fetched)
    except NotFoundError:
        return None
    fetched.replace(path)
    return Saved(bytes=path.stat().st_size, etag=blob.etag, sha256=_sha256(path))


def _is_record(key: str) -> bool:
    """Whether an object is the record of an analysis or a study."""
    parts = key.split("/")
    return key.startswith(key_names.TENANTS) and len(parts) == 4 and parts[2] in ("jobs", "studies")


def _listed(blobs: BlobStore) -> list[BlobInfo]:
    """What the service has in the bucket; others may have more there."""
    return [blob for prefix in key_names.LASTING for blob in blobs.list(prefix)]


def _records(blobs: Iterable[BlobInfo]) -> list[BlobInfo]:
    return [blob for blob in blobs if _is_record(blob.key)]


def _others(blobs: Iterable[BlobInfo]) -> list[BlobInfo]:
    return [blob for blob in blobs if not _is_record(blob.key)]


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _file(folder: Path, key: str) -> Path:
    name = _name(key)
    return folder / "objects" / name[:2] / name


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _replace(path: Path, body: bytes) -> None:
    written = path.with_suffix(".part")
    written.write_bytes(body)
    written.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0, 1 with the reason on standard error, or 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m service.backup", description="backups of this deployment")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (
        ("save", "copy everything that lasts into a folder, which may hold an earlier backup"),
        ("restore", "put a backup into an empty bucket, before the service is started"),
    ):
        commands.add_parser(name, help=words).add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    try:
        deployment = Deployment.connect(Settings())
        made = save(deployment.blobs, given.folder) if given.command == "save" else restore(deployment, given.folder)
    except KeyboardInterrupt:
        print("stopped; run it again", file=sys.stderr)
        return 130
    except (LayerdriftError, redis.RedisError, OSError) as error:
        print(error.detail if isinstance(error, LayerdriftError) else error, file=sys.stderr)
        return 1
    size = sum(one.bytes for one in made.objects.values()) / 2**20
    print(f"{given.command}d {len(made.objects):,} objects, {size:,.1f} MiB, of {made.finished_at:%Y-%m-%d %H:%M}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
