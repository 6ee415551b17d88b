"""Weights that are views of a file: their pages count as this process's memory until they are given back."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")
SUFFIX = ".safetensors"


def give_pages_back(tensors: Iterable[Tensor]) -> int:
    """Forgets the pages of tensors that are views of a checkpoint's file; they are read again where they are needed.

    Only of tensors that nothing has written to: what was written would be lost. Other tensors are left alone.

    Returns:
        How many bytes were given back.
    """
    mapped, given = _mapped_ranges(), 0
    for tensor in tensors:
        start = tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" else 0
        end = start + tensor.untyped_storage().nbytes() if start else 0
        if not any(first <= start and end <= last for first, last in mapped):
            continue
        page = mmap.PAGESIZE
        first, last = -(-start // page) * page, end // page * page  # whole pages that are the tensor's alone
        if last > first and _advise(first, last - first):
            given += last - first
    return given


def _mapped_ranges() -> list[tuple[int, int]]:
    """Addresses at which files of weights are mapped."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return []
    found = []
    for line in lines:
        addresses, *_, name = line.split(maxsplit=5)
        if name.endswith(SUFFIX):
            first, _, last = addresses.partition("-")
            found.append((int(first, 16), int(last, 16)))
    return found


def _advise(start: int, length: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return int(libc.madvise(start, length, mmap.MADV_DONTNEED)) == 0
