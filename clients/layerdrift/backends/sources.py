"""Where checkpoints and data sets come from: `file:` under allowed roots, and `s3:`.

Pinning writes down exactly which bytes a request means and refuses at once what can be seen to be unusable; fetching
copies those files, and no others, to a folder of the worker's. Nothing is executed and nothing is unpickled here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.backends import keys
from layerdrift.backends.blobs import BlobStore
from layerdrift.backends.settings import Settings
from layerdrift.backends.tables import HEAD_BYTES, Columns, check_head, inline_sha256, table_format
from layerdrift.contract.errors import DeniedError, FieldProblem, InputError, NotFoundError
from layerdrift.contract.request import AnalysisRequest, DatasetRef, ModelRef

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
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
CHUNK_BYTES = 8 << 20
MAX_BLOCKS, MAX_WIDTH = 1_000, 65_536
"""Depth and width beyond which a configuration is taken for a mistake, before anything is built from it."""

_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_T = TypeVar("_T")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim")


class PinnedFile(BaseModel):
    """One file as it was when the request came: `version` is an ETag, or the time of its last change."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    version: str


class PinnedModel(BaseModel):
    """A checkpoint's files that will be read."""

    model_config = ConfigDict(frozen=True)

    uri: str
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


class Location(Protocol):
    """A folder or a prefix: the few verbs that sources need of it."""

    def files(self) -> list[PinnedFile]:
        """The files directly in it."""

    def read(self, name: str, length: int) -> bytes:
        """The first bytes of a file."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's bytes, some megabytes at a time."""


class Folder:
    """A folder of this machine whose files really lie under the allowed roots."""

    def __init__(self, path: Path, roots: list[Path], only: str | None = None) -> None:
        self._path = path
        self._roots = roots
        self._only = only

    def files(self) -> list[PinnedFile]:
        found = []
        for entry in sorted(self._path.iterdir()) if self._only is None else [self._path / self._only]:
            if entry.is_file() and entry.name.isprintable() and _within(entry.resolve(), self._roots):
                stat = entry.stat()
                found.append(PinnedFile(name=entry.name, size=stat.st_size, version=f"mtime:{stat.st_mtime_ns}"))
        return found

    def read(self, name: str, length: int) -> bytes:
        with (self._path / name).open("rb") as stream:
            return stream.read(length)

    def chunks(self, name: str) -> Iterator[bytes]:
        with (self._path / name).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


class Prefix:
    """The objects directly under a prefix of a bucket."""

    def __init__(self, store: BlobStore, prefix: str, only: str | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._only = only

    def files(self) -> list[PinnedFile]:
        if self._only is not None:
            found = [self._store.head(self._prefix + self._only)]
        else:
            found = [blob for blob in self._store.list(self._prefix) if "/" not in blob.key[len(self._prefix) :]]
        return [
            PinnedFile(name=blob.key[len(self._prefix) :], size=blob.size, version=f"etag:{blob.etag}")
            for blob in found
            if blob.key != self._prefix
        ]

    def read(self, name: str, length: int) -> bytes:
        return self._store.get(self._prefix + name, length=length)

    def chunks(self, name: str) -> Iterator[bytes]:
        return self._store.chunks(self._prefix + name, CHUNK_BYTES)


class Sources:
    """Opens URIs under the settings' rules."""

    def __init__(self, settings: Settings, blobs: BlobStore) -> None:
        self._settings = settings
        self._blobs = blobs

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
        if not problems and base is not None and tuned is not None:
            _collected(problems, lambda: self._check_shapes(base, tuned))
        if problems or base is None or dataset is None:
            raise InputError("; ".join(problem.detail for problem in problems), problems)
        return Pins(base=base, tuned=tuned, dataset=dataset)

    def _pin_model(self, reference: ModelRef, pointer: str) -> PinnedModel:
        location = self._open(reference.uri, pointer, folder=True)
        files = location.files()
        names = {file.name for file in files}
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
        return PinnedModel(uri=reference.uri, files=pinned)

    @staticmethod
    def _check_config(config: dict[str, Any], pointer: str, uri: str) -> None:
        if not isinstance(config.get("model_type"), str):
            raise InputError.at(pointer, f"{CONFIG} of {uri} names no model_type")
        for what, names, limit in (("blocks", _DEPTH_KEYS, MAX_BLOCKS), ("hidden width", _WIDTH_KEYS, MAX_WIDTH)):
            value = _first(config, names)
            if value is not None and not (type(value) is int and 1 <= value <= limit):
                raise InputError.at(pointer, f"{CONFIG} of {uri} gives {value!r} as {what}; 1 to {limit} are possible")

    def _config(self, location: Location, pointer: str, uri: str) -> dict[str, Any]:
        raw = location.read(CONFIG, _MAX_CONFIG_BYTES)
        try:
            config = json.loads(raw.decode())
        except (ValueError, RecursionError) as error:
            raise InputError.at(pointer, f"{CONFIG} of {uri} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise InputError.at(pointer, f"{CONFIG} of {uri} is not a JSON object")
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
            config = self._config(self._open(pinned.uri, pointer, folder=True), pointer, pinned.uri)
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
        format = table_format(dataset.uri)
        head = location.read(file.name, HEAD_BYTES) if file.size else b""
        columns = Columns.of(dataset, labelled)
        check_head(head, len(head) == file.size, format, columns, dataset.uri)
        return PinnedDataset(source=dataset.uri, file=file)

    def _dataset_file(self, uri: str) -> tuple[Location, PinnedFile]:
        table_format(uri)
        location = self._open(uri, "/dataset/uri", folder=False)
        files = location.files()
        if not files:
            raise InputError.at("/dataset/uri", f"{uri} does not exist or is not a file")
        return location, files[0]

    def fetch_model(self, pinned: PinnedModel, pointer: str, target: Path, tick: Callable[[float], None]) -> str:
        """Copies a pinned checkpoint into `target`; `tick` hears the share that is there, every few megabytes.

        Returns:
            Its fingerprint: sha256 over the names and sha256 of its config and weight files.

        Raises:
            InputError: the files are no longer those that were pinned.
        """
        location = self._open(pinned.uri, pointer, folder=True)
        self._check_unchanged(location, pinned.files, pointer, pinned.uri)
        target.mkdir(parents=True)
        total, done = max(1, sum(file.size for file in pinned.files)), 0
        for file in pinned.files:
            with (target / file.name).open("wb") as stream:
                for chunk in location.chunks(file.name):
                    done += stream.write(chunk)
                    tick(min(1.0, done / total))
        return fingerprint(target)

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
        raise InputError.at(pointer, f"{uri}: the scheme must be file: or s3:")

    def _open_file(self, uri: str, path: str, host: str, pointer: str, folder: bool) -> Location:
        if host not in ("", "localhost") or not path.startswith("/"):
            raise InputError.at(pointer, f"{uri}: write file:///absolute/path")
        roots = self._settings.roots
        real = Path(path).resolve()
        if not _within(real, roots):
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
        if bucket == self._settings.s3_bucket and not key.startswith(keys.CHECKPOINTS):
            raise InputError.at(
                pointer, f"{uri}: of the service's own bucket only {keys.CHECKPOINTS} can be named; use another bucket"
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


def _within(path: Path, roots: list[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


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
