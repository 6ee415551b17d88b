"""What is uploaded: a data set file as it is, a checkpoint folder as a zip that is the same for the same files."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from layerdrift.contract.errors import InputError
from layerdrift.contract.upload import UploadRequest

CHUNK_BYTES = 1 << 20
Heard = Callable[[int, int], None]
"""Hears how many bytes of how many have gone."""

_READ = (".safetensors", ".json", ".txt", ".model", ".jinja", ".bpe", ".codes")
"""Endings of what the service reads of a checkpoint; pickled weights are refused there, so they stay here."""

_EPOCH = (1980, 1, 1, 0, 0, 0)

CONFIG, MODULES = "config.json", "modules.json"
MAX_DEPTH = 3
"""Levels of folders below the given one in which a checkpoint is looked for."""


@dataclass(frozen=True)
class Prepared:
    """A file to be sent, and how it is announced."""

    path: Path
    announced: UploadRequest

    def chunks(self, heard: Heard | None) -> Iterator[bytes]:
        """Its bytes."""
        total, done = self.announced.bytes or 0, 0
        with self.path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
                done += len(chunk)
                if heard is not None:
                    heard(done, total)


@contextmanager
def prepared(path: Path) -> Iterator[Prepared]:
    """A file, or a folder's checkpoint as a zip for as long as this is open.

    Raises:
        InputError: it does not exist, or is a folder without a checkpoint, or with several.
    """
    if path.is_dir():
        checkpoint = _checkpoint_in(path)
        with tempfile.TemporaryDirectory(prefix="layerdrift-") as folder:
            packed = Path(folder) / f"{checkpoint.resolve().name}.zip"
            _pack(checkpoint, packed)
            yield _prepared(packed)
    elif path.is_file():
        yield _prepared(path)
    else:
        raise InputError(f"{path} is neither a file nor a folder")


def _checkpoint_in(folder: Path) -> Path:
    """The folder of the checkpoint: this one, or else the shallowest below it, as the service finds it in a location.

    Raises:
        InputError: there are several at one depth.
    """
    if (folder / CONFIG).is_file() and not (folder / MODULES).is_file():
        return folder
    level = [folder]
    for _ in range(1 + MAX_DEPTH):
        found = [one for one in level if _is_checkpoint(one)]
        if len(found) > 1:
            names = ", ".join(str(one) for one in found[:3])
            raise InputError(f"{folder} contains several checkpoints; name one of them: {names}")
        if found:
            return found[0]
        level = sorted(one for parent in level for one in parent.iterdir() if one.is_dir() and one.name[0] not in "._")
    return folder


def _is_checkpoint(folder: Path) -> bool:
    """Whether it has an adapter's configuration or a model's; parts of sentence-transformers have others."""
    if (folder / "adapter_config.json").is_file():
        return True
    try:
        return isinstance(json.loads((folder / CONFIG).read_bytes())["model_type"], str)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _pack(folder: Path, target: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(_READ))
    if not any(path.suffix == ".safetensors" for path in files):
        raise InputError(f"{folder} contains no .safetensors file; save the model with safe_serialization=True")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            entry = zipfile.ZipInfo(path.name, _EPOCH)
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as inside:
                while chunk := source.read(CHUNK_BYTES):
                    inside.write(chunk)


def _prepared(path: Path) -> Prepared:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Prepared(path, UploadRequest(filename=path.name, sha256=digest, bytes=path.stat().st_size))
