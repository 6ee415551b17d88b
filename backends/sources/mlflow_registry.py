"""`mlflow:` and `models:`: a version of a registered model, pinned to its number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from backends.sources.locations import Location, PinnedFile, is_shown
from backends.sources.remote import Remote
from layerdrift.contract.errors import NotFoundError

_COMPONENTS, _TOKENIZER = "components", "tokenizer"


_MODEL, _ADAPTER = "model", "peft"
"""Folders that mlflow.transformers makes."""


class MlflowVersion:
    """A version of a model in an MLflow registry: a plain folder, or what one of MLflow's flavours makes.

    `mlflow.transformers` puts a model into `model`, an adapter into `peft`, and the tokenizer of either into
    `components/tokenizer`: a folder of this location has those files too where it lacks them. The artifacts are read
    through the tracking server where that serves them, else with `folder_of` from where they lie: `s3:` or `file:`,
    under the same rules as such URIs in a request.

    Args:
        wanted: a version's number, or `@alias`.
    """

    def __init__(
        self, url: str, name: str, wanted: str, auth: httpx.Auth | None, folder_of: Callable[[str], Location]
    ) -> None:
        separator = "" if wanted.startswith("@") else "/"
        self._uri = f"mlflow://{name}{separator}{wanted}"
        self._remote = Remote(
            "MLflow server", url, self._uri, auth, "LAYERDRIFT_MLFLOW_TOKEN or LAYERDRIFT_MLFLOW_USERNAME"
        )
        self._folder_of = folder_of
        self._version = self._found(name, wanted)

    @property
    def revision(self) -> str:
        return str(self._version["version"])

    def files(self) -> list[PinnedFile]:
        return self._top.files()

    def folders(self) -> list[str]:
        names = self._top.folders()
        # beside an adapter lies the base model that it was trained on
        return [name for name in names if not (name == _MODEL and _ADAPTER in names)]

    def inside(self, folder: str) -> Location:
        place = self._top.inside(folder)
        tokenizer = self._tokenizer
        return place if tokenizer is None or folder.startswith(_COMPONENTS) else _Completed(place, tokenizer)

    def read(self, name: str, length: int) -> bytes:
        return self._top.read(name, length)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._top.chunks(name)

    def _found(self, name: str, wanted: str) -> dict[str, Any]:
        registry = "/api/2.0/mlflow"
        if wanted.startswith("@"):
            # that there is no such alias, MLflow says as a bad request; the model itself tells of its aliases
            model = self._remote.json(f"{registry}/registered-models/get", name=name)["registered_model"]
            aliases = {entry["alias"]: entry["version"] for entry in model.get("aliases", [])}
            if wanted[1:] not in aliases:
                known = ", ".join(f"@{alias}" for alias in sorted(aliases)) or "none"
                raise NotFoundError(f"{self._uri} does not exist; aliases of {name}: {known}")
            wanted = aliases[wanted[1:]]
        found: dict[str, Any] = self._remote.json(f"{registry}/model-versions/get", name=name, version=wanted)
        return found["model_version"]  # type: ignore[no-any-return]

    @cached_property
    def _top(self) -> Location:
        name, version = self._version["name"], self.revision
        answer = self._remote.json("/api/2.0/mlflow/model-versions/get-download-uri", name=name, version=version)
        uri = str(answer["artifact_uri"]).rstrip("/")
        parts = urlsplit(uri)
        if parts.scheme != "mlflow-artifacts":
            return self._folder_of(uri)
        # of whatever host: the registry is asked, and no other server
        made = f"mlflow:{self.revision} of {self._version.get('creation_timestamp')}"
        return _Served(self._remote, parts.path.strip("/"), made)

    @cached_property
    def _tokenizer(self) -> Location | None:
        if _COMPONENTS not in self._top.folders():
            return None
        components = self._top.inside(_COMPONENTS)
        return components.inside(_TOKENIZER) if _TOKENIZER in components.folders() else None


class _Completed:
    """A folder, and the files of a second one that it lacks."""

    def __init__(self, first: Location, second: Location) -> None:
        self._first = first
        self._second = second

    def files(self) -> list[PinnedFile]:
        return [file for _, file in self._places.values()]

    def folders(self) -> list[str]:
        return self._first.folders()

    def inside(self, folder: str) -> Location:
        return _Completed(self._first.inside(folder), self._second)

    def read(self, name: str, length: int) -> bytes:
        return self._places[name][0].read(name, length)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._places[name][0].chunks(name)

    @cached_property
    def _places(self) -> dict[str, tuple[Location, PinnedFile]]:
        return {file.name: (place, file) for place in (self._second, self._first) for file in place.files()}


class _Served:
    """A folder of artifacts that a tracking server serves itself."""

    def __init__(self, remote: Remote, path: str, version: str) -> None:
        self._remote = remote
        self._path = path
        self._version = version

    def files(self) -> list[PinnedFile]:
        return [
            PinnedFile(name=entry["path"], size=int(entry["file_size"]), version=self._version)
            for entry in self._entries
            if not entry["is_dir"]
        ]

    def folders(self) -> list[str]:
        return [entry["path"] for entry in self._entries if entry["is_dir"]]

    def inside(self, folder: str) -> Location:
        return _Served(self._remote, f"{self._path}/{folder}", self._version)

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        found = self._remote.json("/api/2.0/mlflow-artifacts/artifacts", path=self._path)
        return [entry for entry in found.get("files", []) if "/" not in entry["path"] and is_shown(entry["path"])]

    def read(self, name: str, length: int) -> bytes:
        return self._remote.head(self._of(name), length)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._remote.chunks(self._of(name))

    def _of(self, name: str) -> str:
        return f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{self._path}/{name}')}"
