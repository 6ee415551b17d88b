"""The files that an analysis leaves, and the list of them that stands beside them in the bucket."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import TypeAdapter

from backends.storage import artifact_names, key_names
from backends.storage.blobs import BlobStore
from backends.storage.report_cache import MEDIA_TYPES, ReportFormat
from layerdrift.contract.artifact import Artifact
from layerdrift.contract.errors import NotFoundError

_LIST = TypeAdapter(dict[str, Artifact])
_MEDIA_TYPES = {
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".safetensors": "application/octet-stream",
    ".txt": "text/plain",
}


class Artifacts:
    """Of one analysis while it runs: files go to the bucket, and are written down.

    Which files there are is told with `finish`: a list is never of half of them.
    """

    def __init__(self, blobs: BlobStore, owned: key_names.Owned) -> None:
        self._blobs = blobs
        self._owned = owned
        self._found: dict[str, Artifact] = {}

    def put_named(self, name: str, path: Path) -> str:
        """Keeps a file under the key of its name, one of `artifact_names`; its sha256."""
        return self.put(name, key_names.artifact_object(self._owned, name), path)

    def put(self, name: str, key: str, path: Path) -> str:
        """Keeps a file under a key; its sha256."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self._blobs.put_file(key, path)
        self._note(name, key, path.stat().st_size, digest, _MEDIA_TYPES.get(path.suffix, "application/octet-stream"))
        return digest

    def put_report(self, format: ReportFormat, body: bytes) -> None:
        """Writes down a report that is in the bucket."""
        key = key_names.report_object(self._owned, format)
        self._note(artifact_names.report(format), key, len(body), hashlib.sha256(body).hexdigest(), MEDIA_TYPES[format])

    def finish(self) -> None:
        """Writes the list."""
        body = _LIST.dump_json(self._found)
        self._blobs.put(key_names.artifact_list(self._owned), body, "application/json")

    def _note(self, name: str, key: str, size: int, digest: str, media_type: str) -> None:
        self._found[key] = Artifact(name=name, media_type=media_type, bytes=size, sha256=digest)


class ArtifactStore:
    """The lists of artifacts of one deployment."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def listed(self, owned: key_names.Owned, link_seconds: int) -> list[Artifact]:
        """The artifacts of an analysis, with links that are good for so long; NotFoundError where there is no list."""
        try:
            found = _LIST.validate_json(self._blobs.get(key_names.artifact_list(owned)))
        except NotFoundError as error:
            raise NotFoundError(f"{owned.id} has no list of artifacts") from error
        return [
            artifact.model_copy(update={"url": self._blobs.link(key, link_seconds)})
            for key, artifact in sorted(found.items(), key=lambda item: item[1].name)
        ]
