"""Fine-tunes that were made before: a job whose worker died, or another one that asks for the same, takes them over.

Which fine-tune it is follows from everything that its weights depend on. The files lie with the analysis that made or
took it last; where that was deleted, the fine-tune is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

from pydantic import BaseModel

from backends.sources.checkpoint_files import file_sha256, fingerprint
from backends.storage import key_names
from backends.storage.artifacts import Artifacts
from backends.storage.blobs import BlobStore
from layerdrift import __version__
from layerdrift.contract.errors import NotFoundError
from layerdrift.contract.request import AnalysisRequest
from workers.models.chats import ChatText
from workers.models.device import best_device, device_name
from workers.results.training import FineTuneRun
from workers.results.warnings import ReportWarning
from workers.stages.common.inputs import Checkpoint, Resolved
from workers.stages.finetune.stage import FineTuned, Snapshot

logger = logging.getLogger(__name__)


class CachedFile(BaseModel):
    """A file in the bucket."""

    name: str
    key: str
    sha256: str


class CachedFinetune(BaseModel):
    """What a fine-tune left. Files are by folder: `` for the tuned model, step-000123, nulls/reseed."""

    run: FineTuneRun
    folders: dict[str, list[CachedFile]]
    snapshots: list[int]
    nulls: list[str]
    warnings: list[ReportWarning] = []


class FinetuneCache:
    """The fine-tunes of one tenant."""

    def __init__(self, blobs: BlobStore, owned: key_names.Owned) -> None:
        self._blobs = blobs
        self._owned = owned

    def find(self, name: str, folder: Path) -> FineTuned | None:
        """The fine-tune of this name, fetched into a folder and others beside it; None where it is not whole any more.

        Raises:
            UnavailableError: S3 is unavailable.
        """
        try:
            kept = CachedFinetune.model_validate_json(
                self._blobs.get(key_names.finetune_object(self._owned.tenant, name))
            )
            for inside, files in kept.folders.items():
                self._fetch(files, _placed(folder, inside))
        except (NotFoundError, ValueError) as error:
            logger.info("no fine-tune to reuse: %s", error)
            for left in (folder, folder.with_name(f"{folder.name}.kept")):
                shutil.rmtree(left, ignore_errors=True)
            return None
        uri = f"s3://{self._blobs.bucket}/{key_names.checkpoint_prefix(self._owned)}"
        snapshots = [Snapshot(step, _placed(folder, _step(step))) for step in kept.snapshots[:-1]]
        if kept.snapshots:
            snapshots.append(Snapshot(kept.snapshots[-1], folder))
        retrained = {null: _checkpoint(_placed(folder, f"nulls/{null}"), "") for null in kept.nulls}
        return FineTuned(_checkpoint(folder, uri), kept.run, snapshots, retrained, kept.warnings)

    def keep(self, name: str, tuned: FineTuned, artifacts: Artifacts) -> None:
        """Stores a fine-tune's files with this analysis, and then its name."""
        folders = {"": tuned.checkpoint.folder}
        folders |= {_step(snapshot.step): snapshot.folder for snapshot in tuned.snapshots[:-1]}
        folders |= {f"nulls/{null}": checkpoint.folder for null, checkpoint in tuned.retrained.items()}
        kept = CachedFinetune(
            run=tuned.run,
            folders={inside: self._put(inside, path, artifacts) for inside, path in folders.items()},
            snapshots=[snapshot.step for snapshot in tuned.snapshots],
            nulls=list(tuned.retrained),
            warnings=tuned.warnings,
        )
        body = kept.model_dump_json().encode()
        self._blobs.put(key_names.finetune_object(self._owned.tenant, name), body, "application/json")

    def _put(self, inside: str, folder: Path, artifacts: Artifacts) -> list[CachedFile]:
        prefix = key_names.checkpoint_prefix(self._owned) + (f"{inside}/" if inside else "")
        found = []
        for path in sorted(folder.iterdir()):
            name = f"{inside}/{path.name}" if inside else path.name
            digest = artifacts.put(f"checkpoint/{name}", prefix + path.name, path)
            found.append(CachedFile(name=path.name, key=prefix + path.name, sha256=digest))
        return found

    def _fetch(self, files: list[CachedFile], target: Path) -> None:
        target.mkdir(parents=True)
        for file in files:
            self._blobs.get_file(file.key, target / file.name)
            if file_sha256(target / file.name) != file.sha256:
                raise ValueError(f"{file.key} is not the file that was stored")


def finetune_name(request: AnalysisRequest, resolved: Resolved) -> str:
    """A hash of all that the weights of a request's fine-tunes depend on."""
    rows = hashlib.sha256()
    for part in (resolved.split.train, resolved.split.held_out):
        rows.update(
            json.dumps([(row.text, row.pair, row.label, row.others, _spans(row.text)) for row in part]).encode()
        )
    depends = {
        "engine": __version__,
        "device": device_name(best_device()),
        "base": resolved.base.fingerprint,
        "finetune": request.finetune.model_dump(mode="json") if request.finetune else None,
        "max_length": resolved.length,
        "nulls": sorted(set(request.analysis.noise_floors) - {"numerical"}),
        "seed": request.seed,
        "rows": rows.hexdigest(),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:40]


def _spans(text: str) -> object:
    """Of a chat, whose words its parts are: what is trained on depends on it."""
    return (text.spans, text.completion, text.plain) if isinstance(text, ChatText) else None


def _placed(folder: Path, inside: str) -> Path:
    """Where a part lies on disk: the tuned model in `folder`, all others beside it."""
    return folder if not inside else folder.with_name(f"{folder.name}.kept") / inside


def _step(step: int) -> str:
    return f"step-{step:06d}"


def _checkpoint(folder: Path, uri: str) -> Checkpoint:
    return Checkpoint(folder, uri, fingerprint(folder))
