"""Runs of autoencoder training in stage `sae`: their batches, progress, early ends, and what they go on from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from layerdrift import __version__
from workers.analysis.sae import SaeConfig, SaeStack
from workers.analysis.sae_batched import BatchedTrainer
from workers.analysis.sae_training import StackTrainer
from workers.models.device import best_device, fast_dtype
from workers.scratch import ActivationStore
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.progress import NO_NUMBERS, OnProgress, Spans

RowsOf = Callable[[Tensor], Iterable[Tensor]]
"""A batch of the stored rows [R, B, D] as the rows of every site of a stack."""


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


class Runs:
    """Trains one stack after another on the stored rows.

    Args:
        seed: of the order of the rows; each run has an order of its own.
    """

    def __init__(self, store: ActivationStore, seed: int, early_stop: bool, spans: Spans, checkpointing: Checkpointing):
        self._store = store
        self._seed = seed
        self._early_stop = early_stop
        self._spans = spans
        self._checkpointing = checkpointing
        self._number = 0

    def run(self, stack: SaeStack, config: SaeConfig, what: str, rows_of: RowsOf | None = None) -> Outcome:
        """Trains a stack in place, from where an earlier worker left the same run.

        Args:
            what: the span of the progress, and for people.
            rows_of: by default the stored sites again and again until the stack has its rows.
        """
        on_progress = self._spans.span(what, f"{what}: {stack.sites} of {config.latents} latents, {config.steps} steps")
        device = best_device()
        there = stack.to(device)
        kind = StackTrainer if device.type == "cpu" else BatchedTrainer
        trainer = kind(there, config, fast_dtype(device))
        name = self._name(stack, config)
        kept = self._checkpointing.checkpoints.load(name)
        if kept is not None:
            trainer.restore(kept)
        generator = torch.Generator().manual_seed(self._seed + self._number)
        self._number += 1
        batches = self._store.training_batches(config.steps, config.batch, generator, skipped=trainer.done)
        saved, pause = time.monotonic(), self._checkpointing.pause(0.0)
        while trainer.done < trainer.end:
            states = next(batches)
            rows = rows_of(states) if rows_of else (states[site % len(states)] for site in range(stack.sites))
            trainer.step(rows, _after_site(on_progress, what, trainer))
            if self._early_stop:
                trainer.end_on_plateau()
            began = time.monotonic()
            if began - saved >= pause:
                self._checkpointing.checkpoints.save(name, trainer.done, _kept(trainer, on_progress, what))
                saved = time.monotonic()
                pause = self._checkpointing.pause(saved - began)
        if there is not stack:
            stack.take(there)
        dead, outliers = trainer.dead_fraction.cpu(), trainer.outlier_share.cpu()
        return Outcome(config, trainer.done, trainer.losses.span, dead, outliers, trainer.unexplained)

    def _name(self, stack: SaeStack, config: SaeConfig) -> str:
        """Of a run that starts as this one does, on the same rows: its states fit no other."""
        start = {"engine": __version__, "run": self._number, "seed": self._seed, "rows": self._store.rows}
        digest = hashlib.sha256(json.dumps(start | asdict(config)).encode())
        for tensor in (stack.scale, stack.b_dec, stack.W_dec[:, ::97]):
            digest.update(tensor.contiguous().numpy().tobytes())
        return f"run-{self._number}-{digest.hexdigest()[:16]}"


def _after_site(on_progress: OnProgress, what: str, trainer: StackTrainer) -> Callable[[int], None]:
    curve = trainer.losses.means
    so_far, numbers = "", NO_NUMBERS
    if curve:
        lowest, highest = (float(value) for value in trainer.unexplained[-1].aminmax())
        so_far = f", FVU {lowest:.2f} to {highest:.2f}"
        numbers = {"step": trainer.done + 1, "fvu_lowest": lowest, "fvu_highest": highest}

    def after(site: int) -> None:
        of_step = (site + 1) / trainer.stack.sites
        detail = f"{what}: step {trainer.done + 1} of {trainer.end}, autoencoder {site + 1} of {trainer.stack.sites}"
        on_progress((trainer.done + of_step) / trainer.end, detail + so_far, numbers)

    return after


def _kept(trainer: StackTrainer, on_progress: OnProgress, what: str) -> Iterator[dict[str, Tensor]]:
    """The parts of its state, with a chance to stop before each."""
    for part in trainer.state():
        on_progress(trainer.done / trainer.end, f"{what}: saving the state after step {trainer.done}")
        yield part
