"""`hf:`: a repository of a Hugging Face hub, pinned to a commit."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from backends.sources.locations import PinnedFile, Tree
from backends.sources.remote import Bearer, Remote


class HubRepository(Tree):
    """A model repository of a Hugging Face hub at one commit; `revision` is what a branch or tag stands for now."""

    def __init__(self, endpoint: str, name: str, revision: str, token: str | None) -> None:
        auth = Bearer(token) if token else None
        self._remote = Remote("hub", endpoint, f"hf://{name}@{revision}", auth, "LAYERDRIFT_HF_TOKEN")
        self._name = name
        self._info = self._remote.json(f"/api/models/{name}/revision/{quote(revision, safe='')}", blobs="true")

    @property
    def revision(self) -> str:
        return str(self._info["sha"])

    def every_file(self) -> Iterator[PinnedFile]:
        for entry in self._info.get("siblings", []):
            content = (entry.get("lfs") or {}).get("sha256") or entry.get("blobId")
            yield PinnedFile(name=entry["rfilename"], size=int(entry.get("size") or 0), version=f"blob:{content}")

    def read_path(self, path: str, length: int) -> bytes:
        return self._remote.head(self._url_of(path), length)

    def chunks_of_path(self, path: str) -> Iterator[bytes]:
        return self._remote.chunks(self._url_of(path))

    def _url_of(self, path: str) -> str:
        return f"/{self._name}/resolve/{self.revision}/{quote(path)}"
