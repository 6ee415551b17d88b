"""Where checkpoints and data sets come from: `file:` under allowed roots, `s3:`, `upload:`, and `hf:` for models.

Pinning writes down exactly which bytes a request means and refuses at once what can be seen to be unusable; fetching
copies those files, and no others, to a folder of the worker's. Nothing is executed and nothing is unpickled here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.backends import keys
from layerdrift.backends.blobs import BlobStore
from layerdrift.backends.locations import (
    Archive,
    Folder,
    HubRepository,
    Location,
    PinnedFile,
    Prefix,
    UploadedFile,
    within,
)
from layerdrift.backends.settings import Settings
from layerdrift.backends.tables import HEAD_BYTES, Columns, check_head, inline_sha256, table_encoding
from layerdrift.backends.uploads import SCHEME, UploadStore
from layerdrift.contract.errors import DeniedError, FieldProblem, InputError, NotFoundError
from layerdrift.contract.request import AnalysisRequest, DatasetRef, ModelRef

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WEIGHTS = ".safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_VOCABULARIES = {
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
}
_TOKENIZER = {
    *_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
}
_MAX_CONFIG_BYTES = 4 << 20
MAX_BLOCKS, MAX_WIDTH = 1_000, 65_536
"""Depth and width beyond which a configuration is taken for a mistake, before anything is built from it."""

_UPLOAD_ID = re.compile(r"up_[a-z2-7]{26}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_T = TypeVar("_T")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim")


class PinnedModel(BaseModel):
    """A checkpoint's files that will be read."""

    model_config = ConfigDict(frozen=True)

    uri: str
    revision: str | None = Field(default=None, description="commit of a hub's repository")
    adapter: bool = Field(default=False, description="a PEFT adapter of the base model, not a whole checkpoint")
    files: list[PinnedFile]


class PinnedDataset(BaseModel):
    """A data set's file, or the hash of an inline one."""

    model_config = ConfigDict(frozen=True)

    source: str = Field(description="URI, or `inline`")
    file: PinnedFile | None = None
    sha256: str | None = Field(default=None, description="of an inline data set")


class Pins(BaseModel):
    """Everything that a request points at."""

    model_config = ConfigDict(frozen=True)

    base: PinnedModel
    tuned: PinnedModel | None
    dataset: PinnedDataset


class Sources:
    """Opens URIs under the settings' rules."""

    def __init__(self, settings: Settings, blobs: BlobStore, tenant: str = keys.DEFAULT_TENANT) -> None:
        self._settings = settings
        self._blobs = blobs
        self._tenant = tenant
        self._uploads = UploadStore(blobs, settings.max_upload_bytes)

    @property
    def max_dataset_bytes(self) -> int:
        """Largest data set, as it is and expanded."""
        return self._settings.max_dataset_bytes

    def of(self, tenant: str) -> Self:
        """The same, as a tenant sees them."""
        theirs = copy.copy(self)
        theirs._tenant = tenant
        return theirs

    def pin(self, request: AnalysisRequest) -> Pins:
        """Pins everything a request points at.

        Raises:
            InputError: something it points at cannot be used; all that is wrong is named, not the first alone.
        """
        problems: list[FieldProblem] = []
        base = _collected(problems, lambda: self._pin_model(request.base, "/base/uri"))
        tuned = None
        if request.tuned is not None:
            reference = request.tuned
            tuned = _collected(problems, lambda: self._pin_model(reference, "/tuned/uri"))
        labelled = request.finetune is not None
        dataset = _collected(problems, lambda: self._pin_dataset(request.dataset, labelled))
        if not problems and base is not None and tuned is not None and not tuned.adapter:
            _collected(problems, lambda: self._check_shapes(base, tuned))
        if problems or base is None or dataset is None:
            raise InputError("; ".join(problem.detail for problem in problems), problems)
        return Pins(base=base, tuned=tuned, dataset=dataset)

    def _pin_model(self, reference: ModelRef, pointer: str) -> PinnedModel:
        location = self._open(reference.uri, pointer, folder=True)
        files = location.files()
        revision = location.commit if isinstance(location, HubRepository) else None
        names = {file.name for file in files}
        if pointer == "/tuned/uri" and ADAPTER_CONFIG in names and CONFIG not in names:
            return self._pin_adapter(reference.uri, revision, location, files)
        if CONFIG not in names:
            raise InputError.at(
                pointer, f"{reference.uri} holds no {CONFIG}; it must name a folder in transformers' layout"
            )
        weights = {name for name in names if name.endswith(_WEIGHTS)}
        if WEIGHTS not in names and not (INDEX in names and weights):
            raise InputError.at(pointer, _no_weights(reference.uri, names))
        if pointer == "/base/uri" and not names & _VOCABULARIES:
            raise InputError.at(
                pointer, f"{reference.uri} holds no tokenizer (one of {', '.join(sorted(_VOCABULARIES))})"
            )
        self._check_config(self._config(location, pointer, reference.uri), pointer, reference.uri)
        if INDEX in names:
            self._check_index(location, names, pointer, reference.uri)
        wanted = {CONFIG, INDEX, *weights, *_TOKENIZER}
        pinned = [file for file in files if file.name in wanted]
        size, limit = sum(file.size for file in pinned), self._settings.max_model_bytes
        if size > limit:
            raise InputError.at(pointer, f"{reference.uri} has {size} bytes; this service reads up to {limit}")
        return PinnedModel(uri=reference.uri, revision=revision, files=pinned)

    def _pin_adapter(self, uri: str, revision: str | None, location: Location, files: list[PinnedFile]) -> PinnedModel:
        pointer = "/tuned/uri"
        if ADAPTER_WEIGHTS not in {file.name for file in files}:
            raise InputError.at(pointer, f"{uri} holds no {ADAPTER_WEIGHTS}; pickled adapters are refused")
        config = self._config(location, pointer, uri, ADAPTER_CONFIG)
        if not isinstance(config.get("peft_type"), str):
            raise InputError.at(pointer, f"{ADAPTER_CONFIG} of {uri} names no peft_type")
        if config.get("auto_mapping"):
            raise InputError.at(pointer, f"{ADAPTER_CONFIG} of {uri} names code to import (auto_mapping): refused")
        pinned = [file for file in files if file.name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
        return PinnedModel(uri=uri, revision=revision, adapter=True, files=pinned)

    @staticmethod
    def _check_config(config: dict[str, Any], pointer: str, uri: str) -> None:
        if not isinstance(config.get("model_type"), str):
            raise InputError.at(pointer, f"{CONFIG} of {uri} names no model_type")
        for what, names, limit in (("blocks", _DEPTH_KEYS, MAX_BLOCKS), ("hidden width", _WIDTH_KEYS, MAX_WIDTH)):
            value = _first(config, names)
            if value is not None and not (type(value) is int and 1 <= value <= limit):
                raise InputError.at(pointer, f"{CONFIG} of {uri} gives {value!r} as {what}; 1 to {limit} are possible")

    def _config(self, location: Location, pointer: str, uri: str, name: str = CONFIG) -> dict[str, Any]:
        try:
            config = json.loads(location.read(name, _MAX_CONFIG_BYTES).decode())
        except (ValueError, RecursionError) as error:
            raise InputError.at(pointer, f"{name} of {uri} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise InputError.at(pointer, f"{name} of {uri} is not a JSON object")
        if "auto_map" in config:
            raise InputError.at(pointer, f"{name} of {uri} names code to run (auto_map), which is refused: remove it")
        return config

    def _check_index(self, location: Location, names: set[str], pointer: str, uri: str) -> None:
        """Every shard that the index names must be a plain name of a file that is there."""
        try:
            shards = set(json.loads(location.read(INDEX, 64 << 20))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError.at(pointer, f"{INDEX} of {uri} has no weight_map") from error
        wrong = sorted(str(name) for name in shards if name not in names or PurePosixPath(str(name)).name != name)
        if wrong:
            raise InputError.at(pointer, f"{INDEX} of {uri} names files that are not in the folder: {wrong[:5]}")

    def _check_shapes(self, base: PinnedModel, tuned: PinnedModel) -> None:
        """Refuses at once a pair whose configurations already tell of another depth or width."""
        shapes = []
        for pinned, pointer in ((base, "/base/uri"), (tuned, "/tuned/uri")):
            config = self._config(self._reopen(pinned, pointer), pointer, pinned.uri)
            shapes.append((_first(config, _DEPTH_KEYS), _first(config, _WIDTH_KEYS)))
        for what, one, other in zip(("blocks", "hidden width"), shapes[0], shapes[1], strict=True):
            if one is not None and other is not None and one != other:
                raise shape_error(what, one, other)

    def _pin_dataset(self, dataset: DatasetRef, labelled: bool) -> PinnedDataset:
        if dataset.uri is None:
            return PinnedDataset(source="inline", sha256=inline_sha256(dataset))
        location, file = self._dataset_file(dataset.uri)
        if file.size > self._settings.max_dataset_bytes:
            raise InputError.at(
                "/dataset/uri",
                f"{dataset.uri} has {file.size} bytes; this service reads up to {self._settings.max_dataset_bytes}",
            )
        encoding = table_encoding(file.name)
        head = location.read(file.name, HEAD_BYTES) if file.size else b""
        columns = Columns.of(dataset, labelled)
        check_head(head, len(head) == file.size, encoding, columns, dataset.uri)
        return PinnedDataset(source=dataset.uri, file=file)

    def _dataset_file(self, uri: str) -> tuple[Location, PinnedFile]:
        if not uri.startswith(SCHEME):
            table_encoding(uri)
        location = self._open(uri, "/dataset/uri", folder=False)
        try:
            files = location.files()
        except NotFoundError as error:
            raise InputError.at("/dataset/uri", error.detail) from error
        if not files:
            raise InputError.at("/dataset/uri", f"{uri} does not exist or is not a file")
        table_encoding(files[0].name)
        return location, files[0]

    def fetch_model(self, pinned: PinnedModel, pointer: str, target: Path, tick: Callable[[float], None]) -> str:
        """Copies a pinned checkpoint into `target`; `tick` hears the share that is there, every few megabytes.

        Returns:
            Its fingerprint: sha256 over the names and sha256 of its config and weight files.

        Raises:
            InputError: the files are no longer those that were pinned.
        """
        location = self._reopen(pinned, pointer)
        self._check_unchanged(location, pinned.files, pointer, pinned.uri)
        target.mkdir(parents=True)
        total, done = max(1, sum(file.size for file in pinned.files)), 0
        for file in pinned.files:
            with (target / file.name).open("wb") as stream:
                for chunk in self._chunks(location, file, pointer, pinned.uri):
                    done += stream.write(chunk)
                    tick(min(1.0, done / total))
        return fingerprint(target)

    @staticmethod
    def _chunks(location: Location, file: PinnedFile, pointer: str, uri: str) -> Iterator[bytes]:
        """A file's bytes; InputError where they are not as many as were pinned, before more are written down."""
        size = 0
        try:
            for chunk in location.chunks(file.name):
                size += len(chunk)
                if size > file.size:
                    break
                yield chunk
        except ValueError as error:
            raise InputError.at(pointer, f"{file.name} of {uri} cannot be read: {error}") from error
        if size != file.size:
            raise InputError.at(pointer, f"{file.name} of {uri} has not the {file.size} bytes that it should have")

    def fetch_dataset(self, pinned: PinnedDataset, target: Path) -> str:
        """Copies a pinned data set file; returns its sha256. InputError where it has changed since."""
        if pinned.file is None:
            raise ValueError("an inline data set has no file")
        location, _ = self._dataset_file(pinned.source)
        self._check_unchanged(location, [pinned.file], "/dataset/uri", pinned.source)
        with target.open("wb") as stream:
            stream.writelines(location.chunks(pinned.file.name))
        return file_sha256(target)

    @staticmethod
    def _check_unchanged(location: Location, pinned: list[PinnedFile], pointer: str, uri: str) -> None:
        try:
            now = {file.name: file for file in location.files()}
        except (NotFoundError, DeniedError, OSError) as error:
            raise InputError.at(pointer, f"{uri} is no longer there: {error}") from error
        changed = [file.name for file in pinned if now.get(file.name) != file]
        if changed:
            raise InputError.at(
                pointer, f"{uri} changed after the request was accepted ({', '.join(changed[:5])}); post it again"
            )

    def _reopen(self, pinned: PinnedModel, pointer: str) -> Location:
        """What was pinned, at the revision that it had then."""
        uri = pinned.uri
        if pinned.revision is not None:
            uri = f"{uri.partition('@')[0]}@{pinned.revision}"
        return self._open(uri, pointer, folder=True)

    def _open(self, uri: str, pointer: str, folder: bool) -> Location:
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
            raise InputError.at(pointer, f"{uri}: write ? as %3F and # as %23; queries and fragments mean nothing here")
        if parts.scheme == "file":
            return self._open_file(uri, path, parts.netloc, pointer, folder)
        if parts.scheme == "s3":
            return self._open_s3(uri, parts.netloc, path.lstrip("/"), pointer, folder)
        if parts.scheme == "upload":
            return self._open_upload(uri, parts.netloc, folder)
        if parts.scheme == "hf" and folder:
            return self._open_hub(uri, parts.netloc, path, pointer)
        schemes = "file:, s3:, upload: or hf:" if folder else "file:, s3: or upload:"
        raise InputError.at(pointer, f"{uri}: the scheme must be {schemes}")

    def _open_upload(self, uri: str, upload_id: str, folder: bool) -> Location:
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise NotFoundError(f"{uri}: write upload://up_...; POST /v1/uploads gives the id")
        file = UploadedFile(self._uploads, self._blobs, self._tenant, upload_id)
        if not folder:
            return file
        return Archive(file, self._blobs, keys.upload_object(self._tenant, upload_id))

    def _open_hub(self, uri: str, owner: str, path: str, pointer: str) -> Location:
        repository, _, revision = f"{owner}{path}".partition("@")
        if not _REPOSITORY.fullmatch(repository):
            raise InputError.at(pointer, f"{uri}: write hf://owner/name or hf://owner/name@revision")
        token = self._settings.hf_token
        secret = token.get_secret_value() if token else None
        return HubRepository(self._settings.hf_endpoint, repository, revision or "main", secret)

    def _open_file(self, uri: str, path: str, host: str, pointer: str, folder: bool) -> Location:
        if host not in ("", "localhost") or not path.startswith("/"):
            raise InputError.at(pointer, f"{uri}: write file:///absolute/path")
        roots = self._settings.roots
        real = Path(path).resolve()
        if not within(real, roots):
            allowed = ", ".join(map(str, roots))
            raise InputError.at(
                pointer, f"{uri} is outside the folders that this service reads ({allowed}); see LAYERDRIFT_MODEL_ROOTS"
            )
        if folder and not real.is_dir():
            raise InputError.at(pointer, f"{uri} is not a folder")
        if folder:
            return Folder(real, roots)
        return Folder(real.parent, roots, only=real.name)

    def _open_s3(self, uri: str, bucket: str, key: str, pointer: str, folder: bool) -> Location:
        if not bucket or not key:
            raise InputError.at(pointer, f"{uri}: write s3://bucket/key")
        own = keys.checkpoints_prefix(self._tenant)
        if bucket == self._settings.s3_bucket and not key.startswith(own):
            raise InputError.at(
                pointer, f"{uri}: of the service's own bucket only {own} can be named; use another bucket"
            )
        store = self._blobs.of_bucket(bucket)
        if folder:
            prefix = Prefix(store, key.rstrip("/") + "/")
            if not prefix.files():
                raise InputError.at(pointer, f"{uri} holds no objects, or they cannot be listed")
            return prefix
        parent, _, name = key.rpartition("/")
        single = Prefix(store, f"{parent}/" if parent else "", only=name)
        single.files()
        return single


def shape_error(what: str, base: object, tuned: object) -> InputError:
    """Two models that cannot be a pair."""
    detail = f"the models differ in {what}: base {base}, tuned {tuned}; a pair must have one shape"
    return InputError.at("/tuned/uri", detail)


def fingerprint(folder: Path) -> str:
    """Which model lies in a folder: sha256 over the names and sha256 of its config and weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == CONFIG or path.suffix == _WEIGHTS:
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _collected(problems: list[FieldProblem], action: Callable[[], _T]) -> _T | None:
    """What `action` returns, or None with its problems written down."""
    try:
        return action()
    except InputError as error:
        problems.extend(error.errors)
        return None


def _first(config: dict[str, Any], names: tuple[str, ...]) -> object:
    return next((config[name] for name in names if name in config), None)


def _no_weights(uri: str, names: set[str]) -> str:
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        return (
            f"{uri} holds pickled weights only ({', '.join(pickled[:3])}); unpickling runs code, so they are refused: "
            "save the model with save_pretrained(safe_serialization=True)"
        )
    return f"{uri} holds no {WEIGHTS}, nor an {INDEX} with its parts"
