"""Trainings in the bucket: states of unfinished ones, until their job has ended, and finished ones of base models."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from backends.storage import key_names
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import NotFoundError, UnavailableError

_BINARY, _JSON = "application/octet-stream", "application/json"

logger = logging.getLogger(__name__)


class BucketCheckpoints:
    """Of one job: for each run an object for every part of its last state, and one that says which state is whole."""

    def __init__(self, blobs: BlobStore, owned: key_names.Owned) -> None:
        self._blobs = blobs
        self._prefix = key_names.unfinished_prefix(owned)

    def load(self, run: str) -> Iterator[dict[str, Tensor]] | None:
        """The last state that was saved whole, part after part; None where there is none.

        Raises:
            UnavailableError: S3 is unavailable, also later, between parts.
        """
        try:
            latest = json.loads(self._blobs.get(self._latest(run)))
        except NotFoundError:
            return None
        logger.info("%s resumes from step %d", run, latest["number"])
        return self._parts(run, latest["number"], latest["parts"])

    def save(self, run: str, number: int, parts: Iterable[dict[str, Tensor]]) -> None:
        """Keeps a state in place of an earlier one; where S3 is unavailable the earlier one stays."""
        try:
            count = 0
            for count, part in enumerate(parts, start=1):
                tensors = {name: tensor.contiguous() for name, tensor in part.items()}
                self._blobs.put(self._part(run, number, count - 1), save(tensors), _BINARY)
            self._blobs.put(self._latest(run), json.dumps({"number": number, "parts": count}).encode(), _JSON)
            kept = f"{self._prefix}{run}/{number:09d}/"
            for blob in self._blobs.list(f"{self._prefix}{run}/"):
                if not blob.key.startswith(kept) and blob.key != self._latest(run):
                    self._blobs.delete(blob.key)
        except UnavailableError as error:
            logger.warning("the state of %s after step %d could not be saved: %s", run, number, error)

    def clear(self) -> None:
        """Forgets the states of all runs."""
        self._blobs.delete_all(self._prefix)

    def _parts(self, run: str, number: int, count: int) -> Iterator[dict[str, Tensor]]:
        for part in range(count):
            key = self._part(run, number, part)
            try:
                yield load(self._blobs.get(key))
            except (NotFoundError, SafetensorError) as error:
                raise UnavailableError(f"{key} is missing or corrupt: {error}") from error

    def _latest(self, run: str) -> str:
        return f"{self._prefix}{run}/latest.json"

    def _part(self, run: str, number: int, part: int) -> str:
        return f"{self._prefix}{run}/{number:09d}/{part:05d}.safetensors"


MOST_KEPT = 2 << 30
"""Bytes of one training, beyond which it is not kept for other analyses."""


class KeptTraining(BaseModel):
    """Where a finished training lies: its parts by number below a prefix, and the sha256 of each."""

    prefix: str
    parts: list[str]


class BucketTrainings:
    """Finished trainings of base models, of one tenant.

    They lie with the analysis that made them; where that was deleted, they are made again.

    Attributes:
        reused: whether one was found.
    """

    def __init__(self, blobs: BlobStore, owned: key_names.Owned) -> None:
        self._blobs = blobs
        self._owned = owned
        self.reused = False

    def find(self, name: str) -> list[dict[str, Tensor]] | None:
        """The parts of a training; None where it is not there, or not whole any more.

        Raises:
            UnavailableError: S3 is unavailable.
        """
        try:
            kept = KeptTraining.model_validate_json(
                self._blobs.get(key_names.training_object(self._owned.tenant, name))
            )
            parts = [self._part(_numbered(kept.prefix, number), sha256) for number, sha256 in enumerate(kept.parts)]
        except (NotFoundError, SafetensorError, ValueError) as error:
            logger.info("no training to reuse: %s", error)
            return None
        self.reused = True
        return parts

    def keep(self, name: str, parts: Sequence[dict[str, Tensor]]) -> None:
        """Stores the parts with this analysis, and then where they are; a large training, or without S3, not."""
        if sum(tensor.nbytes for part in parts for tensor in part.values()) > MOST_KEPT:
            return
        prefix, digests = key_names.training_prefix(self._owned, name), list[str]()
        try:
            for part in parts:
                body = save({name: tensor.contiguous() for name, tensor in part.items()})
                self._blobs.put(_numbered(prefix, len(digests)), body, _BINARY)
                digests.append(hashlib.sha256(body).hexdigest())
            kept = KeptTraining(prefix=prefix, parts=digests).model_dump_json().encode()
            self._blobs.put(key_names.training_object(self._owned.tenant, name), kept, _JSON)
        except UnavailableError as error:
            logger.warning("the training %s could not be kept: %s", name, error)

    def _part(self, key: str, sha256: str) -> dict[str, Tensor]:
        body = self._blobs.get(key)
        if hashlib.sha256(body).hexdigest() != sha256:
            raise ValueError(f"{key} is not the file that was stored")
        return load(body)


def _numbered(prefix: str, number: int) -> str:
    return f"{prefix}{number:05d}.safetensors"
