"""Where tensors live and how wide the machine is."""

from __future__ import annotations

import ctypes
import gc
import resource
from contextlib import suppress

import numba
import torch

FATAL = (torch.OutOfMemoryError, torch.AcceleratorError)
"""What running a model another way does not mend: too little memory, and a device that answers nothing from then on."""

_FAULTS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert")


def is_device_fault(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the device is of no more use to this process."""
    while error is not None:
        told = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if isinstance(error, torch.AcceleratorError) or (told and any(fault in str(error) for fault in _FAULTS)):
            return True
        error = error.__cause__
    return False


def best_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    supports = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if supports else torch.float32


def device_name(device: torch.device) -> str:
    """What a reader would call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def start_threads() -> None:
    """Starts numba's threads, as many as torch has, before anything is computed in this process.

    When numba starts them it sets OpenMP's number, which is torch's as well. Sums over another number of threads round
    otherwise, and a training makes much of that: a worker's first job would not give what its second one does.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.get_num_threads()))
    torch.set_num_threads(threads)


def give_memory_back(garbage: bool = True) -> None:
    """Returns what freed tensors took to the machine: else it stays with the process, below whatever comes next.

    Args:
        garbage: whether to look for tensors in cycles first, which takes a tenth of a second.
    """
    if garbage:
        gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_device_memory_bytes() -> int | None:
    """The most that tensors took on the device since `forget_peak`; None on the CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def forget_peak() -> None:
    """Begins to count the device's peak anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
