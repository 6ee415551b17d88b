"""What requests of a tenant can name: folders, files, checkpoints of its own, uploads, registered models."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from backends.jobs.listing import JobListing
from backends.jobs.records import Wanted
from backends.settings import Settings
from backends.sources.checkpoint_folder import ADAPTER_CONFIG, CONFIG
from backends.sources.file_folder import leads_within
from backends.sources.uri_resolver import Opener
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from backends.storage.uploads import UploadStore
from backends.tables.reading import table_encoding
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError, LayerdriftError
from layerdrift.contract.estimate import Source, Sources

MAX_DEPTH, MAX_FOLDERS = 4, 2_000
"""Below a model root: levels, and folders that are looked at in all."""

MOST = 100
"""Of each kind."""

logger = logging.getLogger(__name__)


class Catalogue:
    """Lists sources; opens none of them."""

    def __init__(self, settings: Settings, blobs: BlobStore, jobs: JobListing, uploads: UploadStore) -> None:
        self._settings = settings
        self._blobs = blobs
        self._jobs = jobs
        self._uploads = uploads

    def of(self, tenant: str) -> Sources:
        """Everything that a tenant may name, newest uploads and checkpoints first."""
        folders, files = self._local()
        uploads = self._of_uploads(tenant)
        models = [*folders, *self._checkpoints(tenant), *self._registered(tenant)]
        models += [one for one in uploads if one.name.endswith(".zip")]
        return Sources(models=models, datasets=[*files, *(one for one in uploads if not one.name.endswith(".zip"))])

    def _local(self) -> tuple[list[Source], list[Source]]:
        models: list[Source] = []
        files: list[Source] = []
        for root in self._settings.roots:
            for folder, names in _folders(root, self._settings.roots):
                shown = str(folder.relative_to(root)) if folder != root else root.name
                if _is_checkpoint(names):
                    models.append(Source(uri=folder.as_uri(), name=shown, kind="folder"))
                    continue
                for name in names:
                    if _is_data(name):
                        path = folder / name
                        files.append(Source(uri=path.as_uri(), name=str(path.relative_to(root)), kind="file"))
        return models[:MOST], files[:MOST]

    def _checkpoints(self, tenant: str) -> list[Source]:
        """The tuned models of earlier fine-tunes."""
        kept = set(self._blobs.folders(key_names.checkpoints_prefix(tenant)))
        records, _ = self._jobs.page(tenant, MOST, None, Wanted(status=Status.SUCCEEDED))
        return [
            Source(
                uri=f"s3://{self._blobs.bucket}/{key_names.checkpoint_prefix(record.owned)}",
                name=record.title,
                kind="checkpoint",
            )
            for record in records
            if key_names.checkpoint_prefix(record.owned) in kept
        ]

    def _of_uploads(self, tenant: str) -> list[Source]:
        found = self._uploads.newest(tenant, MOST)
        return [Source(uri=one.uri, name=one.filename, kind="upload") for one in found if one.status == "complete"]

    def _registered(self, tenant: str) -> list[Source]:
        """The newest versions in the MLflow registry, where one is named and answers."""
        if self._settings.mlflow_url is None:
            return []
        try:
            names = Opener(self._settings, self._blobs, tenant).registered_models(MOST)
        except LayerdriftError as error:
            logger.info("could not list the MLflow registry: %s", error.detail)
            return []
        return [Source(uri=f"mlflow://{one}", name=one, kind="registered") for one in names]


def _folders(root: Path, roots: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Folders below a root and the names of their files.

    Hidden ones, linked folders, and links to files outside the roots are left out.
    """
    for place, inside, names in islice(os.walk(root), MAX_FOLDERS):
        folder = Path(place)
        if len(folder.relative_to(root).parts) >= MAX_DEPTH:
            inside.clear()
        shown = sorted(name for name in names if not name.startswith(".") and leads_within(folder / name, roots))
        if _is_checkpoint(shown):
            inside.clear()  # the layers of a sentence encoder, or the snapshots of a training
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield folder, shown


def _is_checkpoint(names: Iterable[str]) -> bool:
    return not {CONFIG, ADAPTER_CONFIG}.isdisjoint(names)


def _is_data(name: str) -> bool:
    try:
        table_encoding(name)
    except InputError:
        return False
    return True
