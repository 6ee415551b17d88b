"""Runs of autoencoder training in stage `sae`: their batches, progress, early ends, and what they go on from.

What was trained of the base model alone may be another analysis's: its name says all that its numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from layerdrift import __version__
from workers.analysis.sae import SaeConfig, SaeStack
from workers.analysis.sae_batched import BatchedTrainer
from workers.analysis.sae_training import StackTrainer
from workers.capacity import memory_bytes
from workers.models.device import best_device, device_name, fast_dtype
from workers.scratch import ActivationStore
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.finished_trainings import FinishedTrainings
from workers.stages.common.progress import NO_NUMBERS, Numbers, OnProgress, Spans

RowsOf = Callable[[Tensor], Iterable[Tensor]]
"""A batch of the stored rows [R, B, D] as the rows of every site of a stack."""

FLOAT32, BATCH_COPIES = 4, 6
"""Bytes of a number, and how many tensors of a batch's latents a step on a device has at once."""

CPU_SHARE, CUDA_SHARE = 0.3, 0.7
"""Of the memory of the machine or the device: what the autoencoders that are trained together may take beyond their
own numbers on a CPU, and in all on a device.
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a stack is trained on the stored rows.

    what: the span of the progress, and for people. sites: the stored site that each autoencoder reads; empty where
    `rows_of` makes their rows of all sites. order: of the rows; trainings that are compared have the same one. steps:
    that the training takes; None: as many as its configuration says, or fewer with an early stop. reuse: whether it may
    be taken over from an earlier analysis, and is kept for later ones; for `sites` alone.
    """

    what: str
    sites: Sequence[int] = ()
    rows_of: RowsOf | None = None
    order: int = 0
    steps: int | None = None
    reuse: bool = False

    def rows(self, states: Tensor) -> Iterable[Tensor]:
        """A batch of the stored rows [R, B, D] as the rows of every autoencoder; what makes them may be lazy."""
        if self.rows_of is not None:
            return self.rows_of(states)
        return (states[site] for site in self.sites)


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

    @staticmethod
    def joined(outcomes: Sequence[Outcome]) -> Outcome:
        """Of runs of as many steps, one after another."""
        if len({one.steps for one in outcomes}) != 1:
            raise ValueError("the runs took different numbers of steps")
        return replace(
            outcomes[0],
            dead_fraction=torch.cat([one.dead_fraction for one in outcomes]),
            outlier_share=torch.cat([one.outlier_share for one in outcomes]),
            unexplained=torch.cat([one.unexplained for one in outcomes], 1),
        )

    def of_sites(self, sites: list[int]) -> Outcome:
        """Of some of the autoencoders."""
        return replace(
            self,
            dead_fraction=self.dead_fraction[sites],
            outlier_share=self.outlier_share[sites],
            unexplained=self.unexplained[:, sites],
        )


@dataclass(frozen=True)
class _Part:
    """Some of a stack's autoencoders, and the run that trains them.

    places: in the stack, one after another.
    """

    stack: SaeStack
    places: range
    config: SaeConfig
    plan: Plan

    @property
    def is_whole(self) -> bool:
        return len(self.places) == self.stack.sites

    def own(self) -> SaeStack:
        """The stack itself, or the part in memory of its own."""
        return self.stack if self.is_whole else self.stack.of_sites(list(self.places))

    def take(self, trained: SaeStack) -> None:
        """Puts the trained numbers where they belong."""
        for name, tensor in self.stack.tensors().items():
            if tensor is not trained.tensors()[name]:
                tensor[self.places.start : self.places.stop] = trained.tensors()[name]

    def rows(self, states: Tensor) -> Iterator[Tensor]:
        """A batch of the stored rows [R, B, D] as the rows of these autoencoders."""
        return islice(self.plan.rows(states), self.places.start, self.places.stop)


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
        seed: of the order of the rows.
        finished: where trainings of the base model lie that other analyses made; None: nothing is reused or kept.
        memory: bytes that training may take, by default a share of what the device has.
    """

    def __init__(
        self,
        store: ActivationStore,
        seed: int,
        early_stop: bool,
        spans: Spans,
        checkpointing: Checkpointing,
        finished: FinishedTrainings | None = None,
        memory: float | None = None,
    ) -> None:
        self._store = store
        self._seed = seed
        self._early_stop = early_stop
        self._spans = spans
        self._checkpointing = checkpointing
        self._finished = finished
        self._memory = memory
        self._digests: dict[tuple[int, ...], bytes] = {}

    def run(self, stack: SaeStack, config: SaeConfig, plan: Plan) -> Outcome:
        """Trains a stack in place, from where an earlier worker left the same run."""
        words = f"{plan.what}: {stack.sites} of {config.latents} latents, {plan.steps or config.steps} steps"
        on_progress = self._spans.span(plan.what, words)
        device = best_device()
        most = sites_at_once(config, stack.W_enc.shape[2], device, self._memory)
        if self._finished is None or not plan.reuse:
            return self._in_parts(stack, config, plan, most, on_progress)
        name = self._content(stack, config, plan, device, whole=most >= stack.sites)
        found = self._finished.find(name)
        if found is not None:
            on_progress(1.0, f"{plan.what}: reused those of an earlier analysis")
            return _taken(found, stack, config)
        outcome = self._in_parts(stack, config, plan, most, on_progress)
        self._finished.keep(name, _parts_of(stack, outcome))
        return outcome

    def _in_parts(self, stack: SaeStack, config: SaeConfig, plan: Plan, most: int, on_progress: OnProgress) -> Outcome:
        """Trains so many autoencoders at a time."""
        starts = range(0, stack.sites, most)
        found = []
        for number, start in enumerate(starts):
            part = range(start, min(start + most, stack.sites))

            def share(of_part: float, detail: str = "", numbers: Numbers = NO_NUMBERS, /, number: int = number) -> None:
                on_progress((number + of_part) / len(starts), detail, numbers)

            found.append(self._train(_Part(stack, part, config, plan), share))
        return Outcome.joined(found)

    def _train(self, part: _Part, on_progress: OnProgress) -> Outcome:
        """Trains some of a stack's autoencoders in place."""
        config, plan, device = part.config, part.plan, best_device()
        stack = part.own()
        there = stack.to(device)
        kind = StackTrainer if device.type == "cpu" else BatchedTrainer
        trainer = kind(there, config, fast_dtype(device))
        trainer.end = plan.steps or config.steps
        name = self._name(stack, config, plan)
        kept = self._checkpointing.checkpoints.load(name)
        if kept is not None:
            trainer.restore(kept)
        generator = torch.Generator().manual_seed(self._seed + plan.order)
        batches = self._store.training_batches(trainer.end, config.batch, generator, skipped=trainer.done)
        saved, pause = time.monotonic(), self._checkpointing.pause(0.0)
        told = _Told(on_progress, plan.what, trainer)
        while trainer.done < trainer.end:
            trainer.step(part.rows(next(batches)), told.after_site)
            if self._early_stop and part.is_whole and plan.steps is None:
                trainer.end_on_plateau()
            began = time.monotonic()
            if began - saved >= pause:
                self._checkpointing.checkpoints.save(name, trainer.done, _kept(trainer, on_progress, plan.what))
                saved = time.monotonic()
                pause = self._checkpointing.pause(saved - began)
        part.take(there)
        dead, outliers = trainer.dead_fraction.cpu(), trainer.outlier_share.cpu()
        return Outcome(config, trainer.done, trainer.losses.span, dead, outliers, trainer.unexplained)

    def _name(self, stack: SaeStack, config: SaeConfig, plan: Plan) -> str:
        """Of a run that starts as this one does, on the same rows: its states fit no other."""
        start = {
            "engine": __version__,
            "config": asdict(config),
            "what": plan.what,
            "sites": list(plan.sites),
            "steps": plan.steps,
            "order": self._seed + plan.order,
            "rows": self._store.rows,
        }
        digest = hashlib.sha256(json.dumps(start).encode())
        digest.update(_start(stack))
        return f"run-{plan.order}-{digest.hexdigest()[:16]}"

    def _content(self, stack: SaeStack, config: SaeConfig, plan: Plan, device: torch.device, whole: bool) -> str:
        """A hash of all that the numbers of a training depend on: its rows, its start and how it goes."""
        depends = {
            "engine": __version__,
            "config": asdict(config),
            "device": device_name(device),
            "arithmetic": [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), str(fast_dtype(device))],
            "order": self._seed + plan.order,
            "steps": plan.steps,
            "early_stop": self._early_stop and whole and plan.steps is None,
            "sites": [sorted(set(plan.sites)).index(site) for site in plan.sites],
        }
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode())
        digest.update(_start(stack))
        digest.update(self._rows(tuple(sorted(set(plan.sites)))))
        return digest.hexdigest()[:40]

    def _rows(self, sites: tuple[int, ...]) -> bytes:
        """A hash of the rows of some sites; they are read once for all runs on them."""
        if sites not in self._digests:
            self._digests[sites] = self._store.digest(list(sites))
        return self._digests[sites]


def _start(stack: SaeStack) -> bytes:
    """What tells a stack from others of its shape, before it is trained; every 97th latent stands for all."""
    tensors = (stack.scale, stack.norm_limit, stack.b_dec, stack.W_dec[:, ::97])
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


def _parts_of(stack: SaeStack, outcome: Outcome) -> list[dict[str, Tensor]]:
    """A finished training: each of its autoencoders, in the same memory, then its outcome."""
    rest = {
        "steps": torch.tensor(outcome.steps),
        "span": torch.tensor(outcome.span),
        "dead_fraction": outcome.dead_fraction,
        "outlier_share": outcome.outlier_share,
        "unexplained": outcome.unexplained,
    }
    return [*({name: tensor[place] for name, tensor in stack.tensors().items()} for place in range(stack.sites)), rest]


def _taken(parts: Sequence[dict[str, Tensor]], stack: SaeStack, config: SaeConfig) -> Outcome:
    """Puts a finished training's numbers into the stack; its outcome."""
    for place, part in enumerate(parts[:-1]):
        for name, tensor in stack.tensors().items():
            tensor[place] = part[name]
    rest = parts[-1]
    steps, span = int(rest["steps"]), int(rest["span"])
    return Outcome(config, steps, span, rest["dead_fraction"], rest["outlier_share"], rest["unexplained"])


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
