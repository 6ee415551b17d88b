"""From URIs of requests to folders that files are read from, under the settings' rules."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from backends.settings import Settings
from backends.sources.bucket_prefix import Prefix
from backends.sources.file_folder import Folder, within
from backends.sources.hub import HubRepository
from backends.sources.locations import Location
from backends.sources.mlflow_registry import MlflowVersion
from backends.sources.remote import Bearer, Remote
from backends.sources.uploaded import Archive, UploadedFile
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from backends.storage.uploads import UploadStore
from layerdrift.contract.errors import DeniedError, InputError, NotFoundError

_UPLOAD_ID = re.compile(r"up_[a-z2-7]{26}")
_MLFLOW = re.compile(r"(?P<name>[^/:@]+)(/(?P<version>[0-9]+)|/?(?P<alias>@[\w-]+))", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


class Opener:
    """Opens URIs as one tenant may."""

    def __init__(self, settings: Settings, blobs: BlobStore, tenant: str) -> None:
        self._settings = settings
        self._blobs = blobs
        self._tenant = tenant
        self._uploads = UploadStore(blobs, settings.max_upload_bytes)

    def open(self, uri: str, pointer: str, folder: bool) -> Location:
        """The folder that a URI names, or that holds the one file that it names.

        Raises:
            InputError: it is not there, not allowed, or no URI; `pointer` says where in the request it stands.
        """
        try:
            return self._located(uri, pointer, folder)
        except (NotFoundError, DeniedError) as error:
            raise InputError.at(pointer, error.detail) from error
        except (ValueError, OSError, RuntimeError) as error:  # a NUL byte, a name too long, a loop of links
            raise InputError.at(pointer, f"{uri!r} cannot be read: {error}") from error

    def _located(self, uri: str, pointer: str, folder: bool) -> Location:
        parts = urlsplit(uri)
        path = unquote(parts.path, errors="strict")
        if parts.query or parts.fragment:
            raise InputError.at(pointer, f"{uri}: write ? as %3F and # as %23; queries and fragments are not supported")
        if parts.scheme == "file":
            return self._open_file(uri, path, parts.netloc, pointer, folder)
        if parts.scheme == "s3":
            return self._open_s3(uri, parts.netloc, path.lstrip("/"), pointer, folder)
        if parts.scheme == "upload":
            return self._open_upload(uri, parts.netloc, folder)
        if parts.scheme == "hf" and folder:
            return self._open_hub(uri, parts.netloc, path, pointer)
        if parts.scheme in ("mlflow", "models") and folder:
            return self._open_mlflow(uri, unquote(parts.netloc) + path, pointer)
        schemes = "file:, s3:, upload:, hf: or mlflow:" if folder else "file:, s3: or upload:"
        raise InputError.at(pointer, f"{uri}: the scheme must be {schemes}")

    def _open_upload(self, uri: str, upload_id: str, folder: bool) -> Location:
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise NotFoundError(f"{uri}: write upload://up_...; POST /v1/uploads gives the id")
        file = UploadedFile(self._uploads, self._blobs, self._tenant, upload_id)
        if not folder:
            return file
        return Archive(file, self._blobs, key_names.upload_object(self._tenant, upload_id))

    def _open_hub(self, uri: str, owner: str, path: str, pointer: str) -> Location:
        repository, _, revision = f"{owner}{path}".partition("@")
        if not _REPOSITORY.fullmatch(repository):
            raise InputError.at(pointer, f"{uri}: write hf://owner/name or hf://owner/name@revision")
        token = self._settings.hf_token
        secret = token.get_secret_value() if token else None
        return HubRepository(self._settings.hf_endpoint, repository, revision or "main", secret)

    def _open_mlflow(self, uri: str, path: str, pointer: str) -> Location:
        url = self._settings.mlflow_url
        if url is None or not url.startswith(("http://", "https://")):
            raise InputError.at(pointer, f"{uri}: this service has no MLflow server; set LAYERDRIFT_MLFLOW_URL")
        found = _MLFLOW.fullmatch(path.strip("/"))
        if found is None:
            raise InputError.at(pointer, f"{uri}: write mlflow://name/3 or mlflow://name@alias (or models:/…)")
        return MlflowVersion(
            url,
            found["name"],
            found["version"] or found["alias"],
            self._mlflow_auth(),
            lambda folder: self._located(folder, pointer, folder=True),
        )

    def registered_models(self, most: int) -> list[str]:
        """Names and newest versions in the MLflow registry, as `name/version`.

        Raises:
            LayerdriftError: the server cannot be asked.
        """
        url = self._settings.mlflow_url
        if url is None:
            return []
        remote = Remote("MLflow", url, "mlflow:", self._mlflow_auth(), "LAYERDRIFT_MLFLOW_TOKEN")
        found = remote.json("/api/2.0/mlflow/registered-models/search", max_results=str(most))
        return [
            f"{model['name']}/{version['version']}"
            for model in found.get("registered_models", [])
            for version in model.get("latest_versions", [])[-1:]
        ]

    def _mlflow_auth(self) -> httpx.Auth | None:
        settings = self._settings
        if settings.mlflow_token is not None:
            return Bearer(settings.mlflow_token.get_secret_value())
        if settings.mlflow_username and settings.mlflow_password:
            return httpx.BasicAuth(settings.mlflow_username, settings.mlflow_password.get_secret_value())
        return None

    def _open_file(self, uri: str, path: str, host: str, pointer: str, folder: bool) -> Location:
        if host not in ("", "localhost") or not path.startswith("/"):
            raise InputError.at(pointer, f"{uri}: write file:///absolute/path")
        roots = self._settings.roots
        real = Path(path).resolve()
        if not within(real, roots):
            allowed = ", ".join(map(str, roots))
            raise InputError.at(
                pointer,
                f"{uri} is outside the folders that this service may read ({allowed}); see LAYERDRIFT_MODEL_ROOTS",
            )
        if folder and not real.is_dir():
            raise InputError.at(pointer, f"{uri} is not a folder")
        if folder:
            return Folder(real, roots)
        return Folder(real.parent, roots, only=real.name)

    def _open_s3(self, uri: str, bucket: str, key: str, pointer: str, folder: bool) -> Location:
        if not bucket or not key:
            raise InputError.at(pointer, f"{uri}: write s3://bucket/key")
        if {".", ".."} & set(key.split("/")):  # some stores resolve them, and what is allowed goes by prefixes
            raise InputError.at(pointer, f"{uri}: the key of an S3 object cannot contain the parts . and ..")
        own = key_names.checkpoints_prefix(self._tenant)
        if bucket == self._settings.s3_bucket and not key.startswith(own):
            raise InputError.at(
                pointer, f"{uri}: in the service's own bucket only {own} can be used; use another bucket"
            )
        if bucket != self._settings.s3_bucket and not self._may_read(f"{bucket}/{key}"):
            raise InputError.at(
                pointer,
                f"{uri}: this service may not read objects there; its operator lists the readable buckets in "
                "LAYERDRIFT_READABLE_BUCKETS",
            )
        store = self._blobs.of_bucket(bucket)
        if folder:
            prefix = Prefix(store, key.rstrip("/") + "/")
            if not prefix.files() and not prefix.folders():
                raise InputError.at(pointer, f"{uri} contains no objects, or they cannot be listed")
            return prefix
        parent, _, name = key.rpartition("/")
        single = Prefix(store, f"{parent}/" if parent else "", only=name)
        single.files()
        return single

    def _may_read(self, place: str) -> bool:
        """Whether the settings let requests name an object of another bucket: by that, by a prefix in it, or by `*`."""
        return any(
            name == "*" or place.startswith(name if "/" in name else f"{name}/")
            for name in self._settings.readable_buckets
        )


def at_revision(uri: str, revision: str | None) -> str:
    """The URI of a registry that names what was pinned, whatever its branches and aliases say by now."""
    if revision is None:
        return uri
    if uri.startswith("hf:"):
        return f"{uri.partition('@')[0]}@{revision}"
    found = _MLFLOW.fullmatch((urlsplit(uri).netloc + urlsplit(uri).path).strip("/"))
    name = found["name"] if found else uri
    return f"mlflow://{name}/{revision}"
