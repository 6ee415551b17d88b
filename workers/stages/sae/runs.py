"""Runs of autoencoder training in stage `sae`: their batches, progress, early ends, and what they go on from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from layerdrift import __version__
from workers.analysis.sae import SaeConfig, SaeStack
from workers.analysis.sae_batched import BatchedTrainer
from workers.analysis.sae_training import StackTrainer
from workers.capacity import memory_bytes
from workers.models.device import best_device, fast_dtype
from workers.scratch import ActivationStore
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.progress import NO_NUMBERS, Numbers, OnProgress, Spans

RowsOf = Callable[[Tensor], Iterable[Tensor]]
"""A batch of the stored rows [R, B, D] as the rows of every site of a stack."""

FLOAT32, BATCH_COPIES = 4, 6
"""Bytes of a number, and how many tensors of a batch's latents a step on a device has at once."""

CPU_SHARE, CUDA_SHARE = 0.3, 0.7
"""Of the memory of the machine or the device: what the autoencoders that are trained together may take beyond their
own numbers on a CPU, and in all on a device.
"""


@dataclass(frozen=True)
class Outcome:
    """Of a run, by site: shares of dead latents and of rows that were left out, and the curve of `unexplained`.

    dead_fraction, outlier_share: [S]. unexplained: [spans, S], `span` steps each. The optimiser's memory is free.
    """

    config: SaeConfig
    steps: int
    span: int
    dead_fraction: Tensor
    outlier_share: Tensor
    unexplained: Tensor


@dataclass(frozen=True)
class _Part:
    """Some of a stack's autoencoders, and the run that trains them.

    sites: of the stack, one after another.
    """

    stack: SaeStack
    sites: range
    config: SaeConfig
    what: str
    rows_of: RowsOf | None

    @property
    def is_whole(self) -> bool:
        return len(self.sites) == self.stack.sites

    def own(self) -> SaeStack:
        """The stack itself, or the part in memory of its own."""
        return self.stack if self.is_whole else self.stack.of_sites(list(self.sites))

    def take(self, trained: SaeStack) -> None:
        """Puts the trained numbers where they belong."""
        for name, tensor in self.stack.tensors().items():
            if tensor is not trained.tensors()[name]:
                tensor[self.sites.start : self.sites.stop] = trained.tensors()[name]

    def rows(self, states: Tensor) -> Iterator[Tensor]:
        """A batch of the stored rows [R, B, D] as the rows of these autoencoders."""
        if self.rows_of is not None:
            yield from islice(self.rows_of(states), self.sites.start, self.sites.stop)
            return
        for site in self.sites:
            yield states[site % len(states)]


def sites_at_once(config: SaeConfig, width: int, device: torch.device, memory: float | None = None) -> int:
    """How many autoencoders are trained together, at least 1.

    On a CPU, beside their numbers, two moments of each and the gradient of one; on a device all of it for all, with the
    latents of a batch.

    Args:
        memory: bytes, by default a share of what the device has.
    """
    numbers = 2 * FLOAT32 * config.latents * width
    if device.type == "cpu":
        each, memory = 2 * numbers, CPU_SHARE * memory_bytes() if memory is None else memory
    else:
        each = 5 * numbers + BATCH_COPIES * FLOAT32 * config.batch * config.latents
        memory = CUDA_SHARE * torch.cuda.get_device_properties(device).total_memory if memory is None else memory
    return max(1, int(memory // each))


class Runs:
    """Trains one stack after another on the stored rows.

    What does not fit into memory together is trained in parts, one after another on the same batches. Each part goes to
    the end of its steps then: autoencoders that are compared have seen as many.

    Args:
        seed: of the order of the rows; each run has an order of its own.
        memory: bytes that training may take, by default a share of what the device has.
    """

    def __init__(
        self,
        store: ActivationStore,
        seed: int,
        early_stop: bool,
        spans: Spans,
        checkpointing: Checkpointing,
        memory: float | None = None,
    ) -> None:
        self._store = store
        self._seed = seed
        self._early_stop = early_stop
        self._spans = spans
        self._checkpointing = checkpointing
        self._memory = memory
        self._number = 0

    def run(self, stack: SaeStack, config: SaeConfig, what: str, rows_of: RowsOf | None = None) -> Outcome:
        """Trains a stack in place, from where an earlier worker left the same run.

        Args:
            what: the span of the progress, and for people.
            rows_of: by default the stored sites again and again until the stack has its rows.
        """
        on_progress = self._spans.span(what, f"{what}: {stack.sites} of {config.latents} latents, {config.steps} steps")
        device = best_device()
        most = sites_at_once(config, stack.W_enc.shape[2], device, self._memory)
        starts = range(0, stack.sites, most)
        found = []
        for number, start in enumerate(starts):
            part = range(start, min(start + most, stack.sites))

            def share(of_part: float, detail: str = "", numbers: Numbers = NO_NUMBERS, /, number: int = number) -> None:
                on_progress((number + of_part) / len(starts), detail, numbers)

            found.append(self._train(_Part(stack, part, config, what, rows_of), device, share))
        self._number += 1
        first = found[0]
        return replace(
            first,
            dead_fraction=torch.cat([one.dead_fraction for one in found]),
            outlier_share=torch.cat([one.outlier_share for one in found]),
            unexplained=torch.cat([one.unexplained for one in found], 1),
        )

    def _train(self, part: _Part, device: torch.device, on_progress: OnProgress) -> Outcome:
        """Trains some of a stack's autoencoders in place."""
        config, what = part.config, part.what
        stack = part.own()
        there = stack.to(device)
        kind = StackTrainer if device.type == "cpu" else BatchedTrainer
        trainer = kind(there, config, fast_dtype(device))
        name = self._name(stack, config)
        kept = self._checkpointing.checkpoints.load(name)
        if kept is not None:
            trainer.restore(kept)
        generator = torch.Generator().manual_seed(self._seed + self._number)
        batches = self._store.training_batches(config.steps, config.batch, generator, skipped=trainer.done)
        saved, pause = time.monotonic(), self._checkpointing.pause(0.0)
        told = _Told(on_progress, what, trainer)
        while trainer.done < trainer.end:
            trainer.step(part.rows(next(batches)), told.after_site)
            if self._early_stop and part.is_whole:
                trainer.end_on_plateau()
            began = time.monotonic()
            if began - saved >= pause:
                self._checkpointing.checkpoints.save(name, trainer.done, _kept(trainer, on_progress, what))
                saved = time.monotonic()
                pause = self._checkpointing.pause(saved - began)
        part.take(there)
        dead, outliers = trainer.dead_fraction.cpu(), trainer.outlier_share.cpu()
        return Outcome(config, trainer.done, trainer.losses.span, dead, outliers, trainer.unexplained)

    def _name(self, stack: SaeStack, config: SaeConfig) -> str:
        """Of a run that starts as this one does, on the same rows: its states fit no other."""
        start = {"engine": __version__, "run": self._number, "seed": self._seed, "rows": self._store.rows}
        digest = hashlib.sha256(json.dumps(start | asdict(config)).encode())
        for tensor in (stack.scale, stack.b_dec, stack.W_dec[:, ::97]):
            digest.update(tensor.contiguous().numpy().tobytes())
        return f"run-{self._number}-{digest.hexdigest()[:16]}"


class _Told:
    """Progress of a trainer; its curve is asked for once a span, since each answer waits for the device."""

    def __init__(self, on_progress: OnProgress, what: str, trainer: StackTrainer) -> None:
        self._on_progress, self._what, self._trainer = on_progress, what, trainer
        self._spans = 0
        self._range: tuple[float, float] | None = None

    def after_site(self, site: int) -> None:
        """A site has gone through a step; the step is counted when all have."""
        trainer, spans = self._trainer, len(self._trainer.losses.means)
        if spans != self._spans:
            lowest, highest = (float(value) for value in trainer.unexplained[-1].aminmax())
            self._spans, self._range = spans, (lowest, highest)
        so_far, numbers, step = "", NO_NUMBERS, min(trainer.done + 1, trainer.end)
        if self._range is not None:
            lowest, highest = self._range
            so_far = f", FVU {lowest:.2f} to {highest:.2f}"
            numbers = {"step": step, "fvu_lowest": lowest, "fvu_highest": highest}
        of_step = (site + 1) / trainer.stack.sites
        sites = trainer.stack.sites
        detail = f"{self._what}: step {step} of {trainer.end}, autoencoder {site + 1} of {sites}{so_far}"
        self._on_progress(min(1.0, (trainer.done + of_step) / trainer.end), detail, numbers)


def _kept(trainer: StackTrainer, on_progress: OnProgress, what: str) -> Iterator[dict[str, Tensor]]:
    """The parts of its state, with a chance to stop before each."""
    for part in trainer.state():
        on_progress(trainer.done / trainer.end, f"{what}: saving the state after step {trainer.done}")
        yield part
