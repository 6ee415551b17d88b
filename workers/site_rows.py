"""Rows of one site after another, on disk, until those of all sites are there and become an `ActivationStore`."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from workers.scratch import SHARD_ROWS, ActivationStore


class SiteRows:
    """One file of bfloat16 rows for each site; in a folder of its own, which is made and removed here."""

    def __init__(self, folder: Path, sites: int, width: int) -> None:
        self._folder = folder
        self._sites = sites
        self._width = width
        shutil.rmtree(folder, ignore_errors=True)

    def add(self, site: int, rows: Tensor) -> None:
        """Appends rows [N, D] of a site; every site gets those of the same tokens, in one order."""
        self._folder.mkdir(parents=True, exist_ok=True)
        plain = rows.to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        with self._path(site).open("ab") as file:
            file.write(plain.numpy().data)

    def restart(self, site: int) -> None:
        """Forgets the rows of a site."""
        self._path(site).unlink(missing_ok=True)

    def into(self, store: ActivationStore, kept: Tensor | None = None) -> None:
        """Adds them to a store, without those that `kept`, [N] bool, does not tell; nothing stays on disk here.

        Raises:
            ValueError: the sites do not have equally many rows.
        """
        paths = [self._path(site) for site in range(self._sites)]
        sizes = {path.stat().st_size if path.exists() else 0 for path in paths}
        if len(sizes) != 1:
            raise ValueError("the sites have different numbers of rows")
        count = sizes.pop() // (self._width * torch.bfloat16.itemsize)
        for start in range(0, count, SHARD_ROWS):
            part = torch.stack([self._read(path, start, min(SHARD_ROWS, count - start)) for path in paths])
            store.add(part if kept is None else part[:, kept[start : start + SHARD_ROWS]])
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, path: Path, start: int, count: int) -> Tensor:
        size = self._width * torch.bfloat16.itemsize
        with path.open("rb") as file:
            file.seek(start * size)
            found = torch.frombuffer(bytearray(file.read(count * size)), dtype=torch.bfloat16)
        return found.view(count, self._width)

    def _path(self, site: int) -> Path:
        return self._folder / f"{site:04d}.rows"
