"""What is uploaded: a data set file as it is, a checkpoint folder as a zip that is the same for the same files."""

from __future__ import annotations

import hashlib
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

_READ = (".safetensors", ".json", ".txt", ".model")
"""Endings of what the service reads of a checkpoint; pickled weights are refused there, so they stay here."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


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
    """The folder itself where it has weights, else the one shallowest folder below it that has.

    Raises:
        InputError: there is none, or there are several at one depth.
    """
    found = {path.parent for path in folder.rglob("*.safetensors") if path.is_file()}
    if not found:
        raise InputError(f"{folder} contains no .safetensors file; save the model with safe_serialization=True")
    depth = min(len(one.parts) for one in found)
    shallowest = sorted(one for one in found if len(one.parts) == depth)
    if len(shallowest) > 1:
        names = ", ".join(str(one) for one in shallowest[:3])
        raise InputError(f"{folder} contains several checkpoints; name one of them: {names}")
    return shallowest[0]


def _pack(folder: Path, target: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(_READ))
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
