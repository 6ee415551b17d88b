"""Pins what a request names, checkpoints and data sets, to exact files, and fetches those files for the worker.

Pinning writes down exactly which bytes a request means and refuses at once what can be seen to be unusable; fetching
copies those files, and no others, to a folder of the worker's. Nothing is executed and nothing is unpickled here.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from backends.estimates.workload import CHARACTERS_OF_TOKEN, SPECIAL_TOKENS, DataSizes, ModelSizes, Sizes
from backends.settings import Settings
from backends.sources.checkpoint_configs import (
    Shape,
    check_adapter_config,
    check_config,
    check_files,
    is_language_model,
    parameters_of,
    shape_of,
)
from backends.sources.checkpoint_files import (
    GENERATION_CONFIG,
    INDEX,
    TOKENIZER_FILES,
    VOCABULARIES,
    WEIGHTS,
    WEIGHTS_SUFFIX,
    file_sha256,
    fingerprint,
)
from backends.sources.checkpoint_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    MAX_CONFIG_BYTES,
    find_checkpoint,
    folder_of,
    listed,
)
from backends.sources.file_cache import FileCache
from backends.sources.hub import HubRepository
from backends.sources.locations import Location, PinnedFile
from backends.sources.mlflow_registry import MlflowVersion
from backends.sources.pair_checks import BENIGN, BENIGN_IS_TUNED, check_layers, check_shapes
from backends.sources.uri_resolver import Opener, at_revision
from backends.storage.blobs import BlobStore
from backends.storage.uploads import SCHEME
from backends.tables.reading import (
    HEAD_BYTES,
    Columns,
    Encoding,
    Row,
    check_head,
    column_names,
    head_rows,
    inline_sha256,
    table_encoding,
)
from layerdrift.contract.errors import DeniedError, FieldProblem, InputError, NotFoundError, StageError
from layerdrift.contract.estimate import DatasetPreview, PreviewRow
from layerdrift.contract.key import DEFAULT_TENANT
from layerdrift.contract.request import AnalysisRequest, ModelRef, ReferenceRef, TextsRef

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_T = TypeVar("_T")


@contextmanager
def of_reference() -> Iterator[None]:
    """Inside, what is wrong with a data set is wrong with the reference: its pointers say so."""
    try:
        yield
    except InputError as error:
        inside = "/dataset/reference/"
        moved = [
            problem.model_copy(update={"pointer": inside + problem.pointer.removeprefix("/dataset").lstrip("/")})
            for problem in error.errors
        ]
        moved = [one.model_copy(update={"pointer": one.pointer.rstrip("/")}) for one in moved]
        raise InputError(error.detail, moved) from error


class PinnedModel(BaseModel):
    """A checkpoint's files that will be read."""

    model_config = ConfigDict(frozen=True)

    uri: str
    revision: str | None = Field(default=None, description="commit of a hub's repository, or version in MLflow")
    folder: str = Field(default="", description="path of the checkpoint inside what `uri` names; empty: all of it")
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
    reference: PinnedDataset | None = None
    benign: PinnedModel | None = None


class _Opened(NamedTuple):
    """The folder of a location that holds a checkpoint, and the files in it."""

    uri: str
    pointer: str
    revision: str | None
    folder: str
    location: Location
    files: list[PinnedFile]

    @property
    def names(self) -> set[str]:
        """The names of its files."""
        return {file.name for file in self.files}

    def pinned(self, files: list[PinnedFile], adapter: bool = False) -> PinnedModel:
        """The model that some of the files are."""
        return PinnedModel(uri=self.uri, revision=self.revision, folder=self.folder, adapter=adapter, files=files)


class _Looked(NamedTuple):
    """A checkpoint that was looked at."""

    model: PinnedModel
    shape: Shape


class _Head(NamedTuple):
    """The first bytes of a data set's file."""

    bytes: bytes
    whole: bool
    encoding: Encoding
    file: PinnedFile
    where: str

    def rows(self, columns: Columns) -> list[Row]:
        return head_rows(self.bytes, self.whole, self.encoding, columns, self.where)


PREVIEW_ROWS, PREVIEW_CHARACTERS = 5, 300
_ROW_BYTES = 120
"""Of a data set whose rows cannot be counted before it is read."""


class Sources:
    """Opens URIs under the settings' rules."""

    def __init__(self, settings: Settings, blobs: BlobStore, tenant: str = DEFAULT_TENANT) -> None:
        self._settings = settings
        self._blobs = blobs
        self._opener = Opener(settings, blobs, tenant)
        self._tenant = tenant
        self._cache = FileCache(settings.checkpoint_cache, settings.checkpoint_cache_bytes)

    @property
    def max_dataset_bytes(self) -> int:
        """Largest data set, as it is and expanded."""
        return self._settings.max_dataset_bytes

    def of(self, tenant: str) -> Self:
        """The same, as a tenant sees them."""
        theirs = copy.copy(self)
        theirs._opener, theirs._tenant = Opener(self._settings, self._blobs, tenant), tenant
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
            after = request.tuned
            tuned = _collected(problems, lambda: self._pin_model(after, "/tuned/uri"))
        benign = None
        if request.benign is not None:
            other = request.benign
            benign = _collected(problems, lambda: self._pin_model(other, BENIGN))
        labelled = request.labelled
        dataset = _collected(problems, lambda: self._pin_dataset(request.dataset, labelled))
        reference = None
        if request.dataset.reference is not None:
            general = request.dataset.reference
            reference = _collected(problems, lambda: self._pin_reference(general))
        if not problems and base is not None and tuned is not None:
            _collected(problems, lambda: check_shapes(base.shape, tuned.shape, "/tuned/uri"))
        if not problems and base is not None and benign is not None:
            _collected(problems, lambda: check_shapes(base.shape, benign.shape, BENIGN))
        if not problems and base is not None:
            _collected(problems, lambda: check_layers(request, base.shape))
        if tuned is not None and benign is not None and benign.model == tuned.model:
            problems.append(FieldProblem(pointer=BENIGN, detail=BENIGN_IS_TUNED))
        if problems or base is None or dataset is None:
            raise InputError("; ".join(problem.detail for problem in problems), problems)
        return Pins(
            base=base.model,
            tuned=tuned.model if tuned else None,
            dataset=dataset,
            reference=reference,
            benign=benign.model if benign else None,
        )

    def _pin_model(self, reference: ModelRef, pointer: str) -> _Looked:
        opened = self._open_checkpoint(reference.uri, pointer)
        location, names = opened.location, opened.names
        if _is_adapter(opened):
            return self._pin_adapter(opened)
        if CONFIG not in names:
            raise InputError.at(
                pointer, f"{reference.uri} has no {CONFIG}; it must be a folder in the transformers layout"
            )
        weights = {name for name in names if name.endswith(WEIGHTS_SUFFIX)}
        if WEIGHTS not in names and not (INDEX in names and weights):
            raise InputError.at(pointer, _no_weights(reference.uri, names))
        if pointer == "/base/uri" and not names & VOCABULARIES:
            raise InputError.at(pointer, f"{reference.uri} has no tokenizer (one of {', '.join(sorted(VOCABULARIES))})")
        config = self._config(location, pointer, reference.uri)
        check_config(config, pointer, reference.uri)
        check_files(names, pointer, reference.uri)
        if INDEX in names:
            self._check_index(location, names, pointer, reference.uri)
        wanted = {CONFIG, INDEX, GENERATION_CONFIG, *weights, *TOKENIZER_FILES}
        pinned = self._limited([file for file in opened.files if file.name in wanted], pointer, reference.uri)
        return _Looked(opened.pinned(pinned), shape_of(config))

    def _open_checkpoint(self, uri: str, pointer: str) -> _Opened:
        """The checkpoint's own folder, which may lie inside what the URI names."""
        top = self._opener.open(uri, pointer, folder=True)
        revision = top.revision if isinstance(top, HubRepository | MlflowVersion) else None
        folder = find_checkpoint(top, uri, pointer)
        location = folder_of(top, folder)
        return _Opened(uri, pointer, revision, folder, location, listed(location, uri, pointer))

    def _limited(self, files: list[PinnedFile], pointer: str, uri: str) -> list[PinnedFile]:
        """The files; InputError where they are too large together."""
        size, limit = sum(file.size for file in files), self._settings.max_model_bytes
        if size > limit:
            raise InputError.at(pointer, f"{uri} is {size} bytes; the limit of this service is {limit}")
        return files

    def _pin_adapter(self, opened: _Opened) -> _Looked:
        """An adapter, and the tokenizer that was saved with it."""
        uri, pointer = opened.uri, opened.pointer
        if ADAPTER_WEIGHTS not in opened.names:
            raise InputError.at(pointer, f"{uri} has no {ADAPTER_WEIGHTS}; pickled adapters are refused")
        config = self._config(opened.location, pointer, uri, ADAPTER_CONFIG)
        check_adapter_config(config, pointer, uri)
        wanted = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER_FILES}
        pinned = self._limited([file for file in opened.files if file.name in wanted], pointer, uri)
        return _Looked(opened.pinned(pinned, adapter=True), Shape(None, None))

    def _config(self, location: Location, pointer: str, uri: str, name: str = CONFIG) -> dict[str, Any]:
        try:
            config = json.loads(location.read(name, MAX_CONFIG_BYTES).decode())
        except (ValueError, RecursionError) as error:
            raise InputError.at(pointer, f"{name} of {uri} is not JSON: {error}") from error
        except OSError as error:
            raise InputError.at(pointer, f"{name} of {uri} cannot be read: {error.strerror}") from error
        if not isinstance(config, dict):
            raise InputError.at(pointer, f"{name} of {uri} is not a JSON object")
        return config

    def _check_index(self, location: Location, names: set[str], pointer: str, uri: str) -> None:
        """Every shard that the index names must be a plain name of a file that is there."""
        try:
            shards = set(json.loads(location.read(INDEX, 64 << 20))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError.at(pointer, f"{INDEX} of {uri} has no weight_map") from error
        wrong = sorted(str(name) for name in shards if name not in names or PurePosixPath(str(name)).name != name)
        if wrong:
            raise InputError.at(pointer, f"{INDEX} of {uri} lists files that are not in the folder: {wrong[:5]}")

    def sizes(self, request: AnalysisRequest, pins: Pins) -> Sizes:
        """What an estimate rests on: the base model's configuration, and the first bytes of the data set.

        Args:
            pins: of the same request.
        """
        location = self._reopen(pins.base, "/base/uri")
        config = self._config(location, "/base/uri", pins.base.uri)
        blocks, width = shape_of(config)
        own, every = parameters_of(config)
        held = sum(file.size for file in pins.base.files)
        model = ModelSizes(
            blocks if isinstance(blocks, int) else 12,
            width if isinstance(width, int) else 768,
            own or held // 4,
            every or held // 4,
            held,
            is_language_model(config),
        )
        adapter = pins.tuned is not None and pins.tuned.adapter
        fetched = _size_of(pins.tuned) + _size_of(pins.benign)
        return Sizes(model, self._data_sizes(request.dataset, pins.dataset), fetched, adapter)

    def model_type(self, pinned: PinnedModel, pointer: str) -> str | None:
        """The architecture that a checkpoint's configuration names; None for an adapter, which has its base's."""
        if pinned.adapter:
            return None
        found = self._config(self._reopen(pinned, pointer), pointer, pinned.uri).get("model_type")
        return found if isinstance(found, str) else None

    def _data_sizes(self, dataset: TextsRef, pinned: PinnedDataset) -> DataSizes:
        if dataset.inline is not None:
            texts = [*dataset.inline.texts, *(dataset.inline.pairs or [])]
            return _measured(texts, len(dataset.inline.texts), sum(map(len, texts)))
        if pinned.file is None:
            raise ValueError("a data set that is not inline has a file")
        head = self._head(dataset)
        rows = head.rows(Columns.of(dataset, labelled=False))
        read = min(head.file.size, HEAD_BYTES)
        count = round(len(rows) * head.file.size / max(1, read))
        if head.encoding.format == "parquet" or head.encoding.compression is not None or not rows:
            count = max(len(rows), head.file.size // _ROW_BYTES)
        texts = [text for row in rows for text in (row.text, row.pair) if text is not None]
        return _measured(texts, max(count, 1), head.file.size)

    def preview(self, dataset: TextsRef, labelled: bool, limit: int = PREVIEW_ROWS) -> DatasetPreview:
        """The first rows of a data set, its columns, and what keeps it from being used.

        Raises:
            InputError: the file itself cannot be opened.
        """
        if dataset.inline is not None:
            shown = [PreviewRow(text=text[:PREVIEW_CHARACTERS]) for text in dataset.inline.texts[:limit]]
            return DatasetPreview(columns=[], rows=shown, rows_estimated=len(dataset.inline.texts))
        head = self._head(dataset)
        names = column_names(head.bytes, head.whole, head.encoding, head.where)
        try:
            rows = head.rows(Columns.of(dataset, labelled))
        except InputError as error:
            return DatasetPreview(columns=names, rows=[], rows_estimated=None, problems=error.errors)
        known = head.whole or (head.encoding.compression is None and bool(rows))
        count = round(len(rows) * head.file.size / max(1, len(head.bytes))) if known else None
        shown = [
            PreviewRow(
                text=row.text[:PREVIEW_CHARACTERS],
                pair=row.pair and row.pair[:PREVIEW_CHARACTERS],
                label=row.label,
                group=row.group,
            )
            for row in rows[:limit]
        ]
        return DatasetPreview(columns=names, rows=shown, rows_estimated=count)

    def _head(self, dataset: TextsRef) -> _Head:
        if dataset.uri is None:
            raise ValueError("an inline data set has no file")
        location, file = self._dataset_file(dataset.uri)
        head = location.read(file.name, HEAD_BYTES) if file.size else b""
        return _Head(head, len(head) == file.size, table_encoding(file.name), file, dataset.uri)

    def _pin_reference(self, reference: ReferenceRef) -> PinnedDataset:
        with of_reference():
            return self._pin_dataset(reference, labelled=False)

    def _pin_dataset(self, dataset: TextsRef, labelled: bool) -> PinnedDataset:
        if dataset.uri is None:
            return PinnedDataset(source="inline", sha256=inline_sha256(dataset))
        location, file = self._dataset_file(dataset.uri)
        if file.size > self._settings.max_dataset_bytes:
            raise InputError.at(
                "/dataset/uri",
                f"{dataset.uri} is {file.size} bytes; the limit of this service is {self._settings.max_dataset_bytes}",
            )
        encoding = table_encoding(file.name)
        head = location.read(file.name, HEAD_BYTES) if file.size else b""
        columns = Columns.of(dataset, labelled)
        check_head(head, len(head) == file.size, encoding, columns, dataset.uri)
        return PinnedDataset(source=dataset.uri, file=file)

    def _dataset_file(self, uri: str) -> tuple[Location, PinnedFile]:
        if not uri.startswith(SCHEME):
            table_encoding(uri)
        location = self._opener.open(uri, "/dataset/uri", folder=False)
        try:
            files = location.files()
        except NotFoundError as error:
            raise InputError.at("/dataset/uri", error.detail) from error
        if not files:
            raise InputError.at("/dataset/uri", f"{uri} does not exist or is not a file")
        table_encoding(files[0].name)
        return location, files[0]

    def fetch_model(self, pinned: PinnedModel, pointer: str, target: Path, on_progress: Callable[[float], None]) -> str:
        """Copies a pinned checkpoint into `target`; `on_progress` hears the share that is there, every few megabytes.

        Returns:
            Its fingerprint: sha256 over the names and sha256 of its config and weight files.

        Raises:
            InputError: the files are no longer those that were pinned.
        """
        location = self._reopen(pinned, pointer)
        self._check_unchanged(location, pinned.files, pointer, pinned.uri)
        target.mkdir(parents=True)
        source = f"{self._tenant} {pinned.uri} {pinned.revision} {pinned.folder}"
        left = [file for file in pinned.files if not self._cache.take(f"{source} {file}", target / file.name)]
        missing = sum(file.size for file in left)
        if shutil.disk_usage(target).free < missing:
            self._cache.shrink(0)
        _check_room(target, missing, pinned.uri)
        done = 0
        for file in left:
            with (target / file.name).open("wb") as stream:
                for chunk in self._chunks(location, file, pointer, pinned.uri):
                    done += stream.write(chunk)
                    on_progress(min(1.0, done / max(1, missing)))
            if file.name.endswith(".safetensors"):  # others may be changed where they are
                self._cache.keep(f"{source} {file}", target / file.name)
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
            raise InputError.at(pointer, f"{file.name} of {uri} does not have the expected {file.size} bytes")

    def fetch_dataset(self, pinned: PinnedDataset, target: Path) -> str:
        """Copies a pinned data set file; returns its sha256. InputError where it has changed since."""
        if pinned.file is None:
            raise ValueError("an inline data set has no file")
        location, _ = self._dataset_file(pinned.source)
        self._check_unchanged(location, [pinned.file], "/dataset/uri", pinned.source)
        _check_room(target.parent, pinned.file.size, pinned.source)
        with target.open("wb") as stream:
            for chunk in self._chunks(location, pinned.file, "/dataset/uri", pinned.source):
                stream.write(chunk)
        return file_sha256(target)

    @staticmethod
    def _check_unchanged(location: Location, pinned: list[PinnedFile], pointer: str, uri: str) -> None:
        try:
            now = {file.name: file for file in location.files()}
        except (NotFoundError, DeniedError, OSError) as error:
            raise InputError.at(pointer, f"{uri} is no longer available: {error}") from error
        changed = [file.name for file in pinned if now.get(file.name) != file]
        if changed:
            raise InputError.at(
                pointer, f"{uri} changed after the request was accepted ({', '.join(changed[:5])}); post it again"
            )

    def _reopen(self, pinned: PinnedModel, pointer: str) -> Location:
        """What was pinned, at the revision that it had then."""
        top = self._opener.open(at_revision(pinned.uri, pinned.revision), pointer, folder=True)
        try:
            return folder_of(top, pinned.folder)
        except (NotFoundError, DeniedError, OSError) as error:
            raise InputError.at(pointer, f"{pinned.uri} is no longer available: {error}") from error


def _size_of(pinned: PinnedModel | None) -> int:
    return sum(file.size for file in pinned.files) if pinned is not None else 0


def _measured(texts: Sequence[str], rows: int, size: int) -> DataSizes:
    characters = sum(map(len, texts)) / max(1, len(texts)) if texts else 4.0 * _ROW_BYTES
    return DataSizes(rows, SPECIAL_TOKENS + characters / CHARACTERS_OF_TOKEN, size)


def _check_room(folder: Path, size: int, uri: str) -> None:
    """StageError where a copy would fill this machine's disk."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise StageError(
            f"{uri} is {size} bytes, but the worker's disk has only {free} free (No space left on device): free up "
            "space under LAYERDRIFT_HOME, or use a smaller one"
        )


def _is_adapter(opened: _Opened) -> bool:
    """Whether a folder holds a PEFT adapter; InputError where it holds a model too, or is to be the base."""
    names, uri = opened.names, opened.uri
    if ADAPTER_CONFIG not in names:
        return False
    whole = next((name for name in (WEIGHTS, INDEX) if name in names), None)
    if whole is not None and ADAPTER_WEIGHTS in names:
        detail = f"{uri} has both a model ({whole}) and an adapter ({ADAPTER_WEIGHTS}); remove one of them"
        raise InputError.at(opened.pointer, detail)
    if whole is not None or (CONFIG in names and ADAPTER_WEIGHTS not in names):
        return False
    if opened.pointer == "/base/uri":
        detail = f"{uri} is a PEFT adapter ({ADAPTER_CONFIG}); the base must be a full checkpoint: give the model"
        raise InputError.at(opened.pointer, f"{detail} that the adapter was trained on")
    return True


def _collected(problems: list[FieldProblem], action: Callable[[], _T]) -> _T | None:
    """What `action` returns, or None with its problems written down."""
    try:
        return action()
    except InputError as error:
        problems.extend(error.errors)
        return None


def _no_weights(uri: str, names: set[str]) -> str:
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        return (
            f"{uri} has only pickled weights ({', '.join(pickled[:3])}); unpickling runs code, so they are refused: "
            "save the model with save_pretrained(safe_serialization=True)"
        )
    return f"{uri} has neither {WEIGHTS} nor {INDEX} with its shards"
