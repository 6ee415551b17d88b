"""What a job keeps on disk for its time, bounded in bytes: activations, and the moments of groups of texts.

Shards of safetensors hold rows of all sites in bfloat16; a run reads them in shuffled order, a few at a time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.analysis.moments import SMALL_SUMS, Frame, PairMoments
from workers.analysis.packing import Packed, packed, unpacked
from workers.analysis.streams import ROWS_PER_WIDTH, Group

SHARD_ROWS = 4096
MIXED_SHARDS = 2
"""Shards whose rows are shuffled together."""


@dataclass
class ActivationStore:
    """Rows of S sites, [S, N, D] as bfloat16, in shards of SHARD_ROWS; at most `max_rows` of them."""

    folder: Path
    max_rows: int
    rows: int = 0
    _pending: list[Tensor] = field(default_factory=list)
    _pending_rows: int = 0
    _shards: list[Path] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether it takes no more rows."""
        return self.rows >= self.max_rows

    def add(self, states: Tensor) -> None:
        """Appends rows [S, N, D]; what is beyond the bound is dropped."""
        if self.full:
            return
        states = states[:, : self.max_rows - self.rows].to(torch.bfloat16)
        self.rows += states.shape[1]
        self._pending.append(states)
        self._pending_rows += states.shape[1]
        if self._pending_rows >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending to disk."""
        if not self._pending_rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{len(self._shards):06d}.safetensors"
        save_file({"rows": torch.cat(self._pending, dim=1).contiguous().cpu()}, path)
        self._shards.append(path)
        self._pending, self._pending_rows = [], 0

    def shards(self) -> Iterator[Tensor]:
        """All rows once, in the order in which they came; each [S, n, D] bfloat16."""
        self.flush()
        for path in self._shards:
            yield load_file(path)["rows"]

    def digest(self, sites: list[int]) -> bytes:
        """A hash of the rows of some sites, in their order; 32 bytes."""
        found = hashlib.blake2b(digest_size=32)
        for shard in self.shards():
            for site in sites:
                found.update(shard[site].contiguous().view(torch.int16).numpy().tobytes())
        return found.digest()

    def training_batches(
        self, steps: int, batch: int, generator: torch.Generator, skipped: int = 0
    ) -> Iterator[Tensor]:
        """`steps` batches [S, batch, D] of shuffled rows, in as many passes as that takes, without the first `skipped`.

        Raises:
            ValueError: there are fewer rows than one batch.
        """
        self.flush()
        if self.rows < batch:
            raise ValueError(f"{self.rows} rows do not fill a batch of {batch}")
        made = 0
        left: Tensor | None = None
        while made < steps:
            order = torch.randperm(len(self._shards), generator=generator).tolist()
            for first in range(0, len(order), MIXED_SHARDS):
                parts = [load_file(self._shards[index])["rows"] for index in order[first : first + MIXED_SHARDS]]
                pool = torch.cat(parts if left is None else [left, *parts], dim=1)
                shuffled = torch.randperm(pool.shape[1], generator=generator)
                whole = pool.shape[1] // batch
                for number in range(min(whole, steps - made)):
                    if made >= skipped:
                        yield pool[:, shuffled[number * batch : (number + 1) * batch]]
                    made += 1
                if made >= steps:
                    return
                left = pool[:, shuffled[whole * batch :]]


@dataclass
class GroupStore:
    """What the moments of groups of rows follow from: the first of them in memory, a file for each of the others.

    memory_bytes: what the groups in memory may take; half of writing a file goes into finding new room for it.
    every: of a group's rows, each such one is kept; 1: all.
    """

    folder: Path
    memory_bytes: int
    every: int = 1
    groups: int = 0
    _in_memory: list[dict[str, Tensor]] = field(default_factory=list)

    def put(self, group: Group) -> None:
        """Keeps one group: its moments, or its rows where these are fewer numbers."""
        tensors = _tensors(group) if isinstance(group, PairMoments) else {"base": group.base, "tuned": group.tuned}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if len(self._in_memory) == self.groups and size <= self.memory_bytes:
            self._in_memory.append(tensors)
            self.memory_bytes -= size
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, self.folder / f"{self.groups:03d}.safetensors")
        self.groups += 1

    def each(self, frame: Frame) -> Iterator[PairMoments]:
        """The groups' moments in the order in which they came; `frame` is the one they were gathered under."""
        for number in range(self.groups):
            on_disk = number >= len(self._in_memory)
            tensors = load_file(self.folder / f"{number:03d}.safetensors") if on_disk else self._in_memory[number]
            if "n" in tensors:
                yield _moments(tensors, frame)
                continue
            moments = PairMoments.zeros(frame)
            moments.add(tensors["base"], tensors["tuned"])
            yield moments

    def clear(self) -> None:
        """Forgets all groups, in memory and on disk."""
        self.groups = 0
        self._in_memory.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def bytes_for(sites: int, width: int, rows: int) -> int:
        """Disk that one group of so many rows takes, about."""
        if rows <= ROWS_PER_WIDTH * width:
            return 2 * sites * rows * width * torch.float32.itemsize
        sums = 2 * width**2 + width
        return sites * (sums * torch.float32.itemsize + (10 * width + 29) * torch.float64.itemsize)


def _tensors(moments: PairMoments) -> dict[str, Tensor]:
    sums = packed(moments.xx, moments.yy, moments.xy)._asdict()
    small = {name: getattr(moments, name).clone() for name in SMALL_SUMS}  # their memory is used again
    return {"n": torch.tensor(moments.n), **sums, **small}


def _moments(tensors: dict[str, Tensor], frame: Frame) -> PairMoments:
    sums = unpacked(Packed(*(tensors[name] for name in Packed._fields)))
    return PairMoments(int(tensors["n"]), frame, *sums, *(tensors[name] for name in SMALL_SUMS))
