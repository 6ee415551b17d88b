"""Trains a classifier under a recipe: what is frozen, in which precision, on which labels. Writes no file.

Used by the fine-tune itself, by the fine-tunes that serve as nulls, and by the freeze sweep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import FineTune
from workers.models.device import fast_dtype
from workers.models.prefix import PrefixCache
from workers.models.structure import blocks_of, parameters_before, shares_blocks
from workers.models.texts import Batch, batches, run
from workers.results.training import Evaluation
from workers.stages.common.progress import OnProgress

WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1
CLIP_NORM = 1.0
EVALUATED_AT_ONCE = 64


@dataclass(frozen=True)
class TrainingData:
    """Rows and how they are read. targets: class numbers of the training rows, by default those of their labels."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    labels: list[str]
    train: list[Row]
    held_out: list[Row]
    targets: list[int] | None = None

    def shuffled(self, seed: int) -> TrainingData:
        """The same rows with their labels shuffled."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed)).tolist()
        numbers = self.numbers()
        return replace(self, targets=[numbers[index] for index in order])

    def without_held_out(self) -> TrainingData:
        """The same training without looks at held-out rows."""
        return replace(self, held_out=[])

    def numbers(self) -> list[int]:
        """The class number of every training row."""
        known = {label: index for index, label in enumerate(self.labels)}
        return self.targets or [known[str(row.label)] for row in self.train]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    frozen: blocks, counted from 1, that stay as they are, and the embeddings with them; none: nothing is frozen.
    body_frozen: only the head is trained. stop_after: end there, on the schedule of the whole run.
    """

    settings: FineTune
    seed: int
    frozen: frozenset[int] = frozenset()
    body_frozen: bool = False
    stop_after: int | None = None

    @property
    def prefix(self) -> int:
        """Blocks from the bottom on that are frozen without a gap."""
        count = 0
        while count + 1 in self.frozen:
            count += 1
        return count

    @staticmethod
    def of(settings: FineTune, seed: int) -> Recipe:
        """As the request has it."""
        frozen = frozenset(range(1, settings.freeze_first + 1))
        return Recipe(settings, seed, frozen, body_frozen=settings.method == "head")


@dataclass
class Training:
    """What a run left. `cached`: the frozen prefix ran once for each row."""

    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    held_out: list[Evaluation] = field(default_factory=list)
    training_bytes: int = 0
    cached: bool = False

    @property
    def steps(self) -> int:
        """Optimiser steps that were made."""
        return len(self.losses)

    @property
    def best_step(self) -> int:
        """The first step with the best held-out accuracy, then loss; the last one where nothing was held out."""
        if not self.held_out:
            return self.steps
        return min(self.held_out, key=lambda one: (-one.accuracy, one.loss, one.step)).step


def training_dtype(settings: FineTune, device: torch.device) -> torch.dtype:
    """What products are computed in."""
    if settings.precision == "auto":
        return fast_dtype(device)
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def planned_steps(settings: FineTune, rows: int) -> int:
    """Optimiser steps of a whole run."""
    steps = settings.epochs * -(-rows // settings.batch_size)
    return min(steps, settings.max_steps or steps)


def train(
    model: PreTrainedModel,
    data: TrainingData,
    recipe: Recipe,
    on_progress: OnProgress,
    at_step: Callable[[int, Training, PreTrainedModel], None] | None = None,
) -> Training:
    """Trains in place; the model is in evaluation mode afterwards.

    The same recipe gives the same weights on the same kind of machine: dropout follows torch's generator, which the
    caller has seeded and forked, and the order of the rows the recipe's seed.

    Args:
        at_step: called after every step, held-out evaluation included.

    Raises:
        InputError: the training diverged.
    """
    settings, run_so_far = recipe.settings, Training()
    freeze(model, recipe)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    steps = planned_steps(settings, len(data.train))
    schedule: LRScheduler = get_linear_schedule_with_warmup(optimiser, round(WARMUP_SHARE * steps), steps)
    cache = _prefix_cache(model, recipe, len(data.train)) if settings.epochs > 1 else None
    last = min(steps, recipe.stop_after or steps)
    dtype = training_dtype(settings, model.device)
    _training_mode(model)
    for batch, targets, rows, ends_epoch, largest in _epochs(data, settings, recipe.seed):
        started = time.perf_counter()
        counter = _SavedBytes(trainable) if largest else None
        with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = _logits(model, batch, rows, cache, counter)
        loss = nn.functional.cross_entropy(logits.float(), targets.to(logits.device))
        run_so_far.losses.append(loss.item())
        _require_finite(run_so_far)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        run_so_far.step_seconds.append(time.perf_counter() - started)
        if counter is not None:
            run_so_far.training_bytes = max(run_so_far.training_bytes, counter.bytes + _state_bytes(model, trainable))
        made = run_so_far.steps
        if data.held_out and (ends_epoch or made == last):
            run_so_far.held_out.append(_held_out(model, data, made))
            _training_mode(model)
        if at_step is not None:
            at_step(made, run_so_far, model)
        latest = run_so_far.losses[-1]
        on_progress(made / last, f"step {made} of {last}, loss {latest:.3f}", {"step": made, "loss": latest})
        if made == last:
            break
    run_so_far.cached = cache is not None and cache.used
    model.eval()
    return run_so_far


def freeze(model: PreTrainedModel, recipe: Recipe) -> None:
    """Takes the gradient from what the recipe freezes.

    Raises:
        InputError: the model has fewer blocks.
    """
    body = model.base_model
    blocks = blocks_of(body)
    if max(recipe.frozen, default=0) > len(blocks):
        raise InputError.at("/finetune/freeze_first", f"the model has {len(blocks)} blocks")
    frozen: set[int] = set()
    if recipe.body_frozen:
        frozen = {id(parameter) for parameter in body.parameters()}
    elif recipe.settings.method == "lora":
        return  # adapters were put only where something is trained
    elif recipe.frozen:
        frozen = {id(parameter) for parameter in parameters_before(body, recipe.prefix)}
        for number in recipe.frozen:
            frozen |= {id(parameter) for parameter in blocks[number - 1].parameters()}
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)


def evaluate(model: PreTrainedModel, data: TrainingData, rows: list[Row]) -> tuple[Tensor, float]:
    """Which of the rows get their right label, [N] bool, and the mean cross-entropy in nats over known labels.

    A label that was never trained on counts as wrong.
    """
    known = {label: index for index, label in enumerate(data.labels)}
    targets = torch.tensor([known.get(str(row.label), -1) for row in rows])
    right = torch.zeros(len(rows), dtype=torch.bool)
    loss, counted = 0.0, 0
    for batch in batches(data.tokenizer, [row.content for row in rows], EVALUATED_AT_ONCE, data.length):
        with torch.inference_mode():
            logits = run(model, batch).logits.float().cpu()
        wanted = targets[batch.indices]
        right[batch.indices] = logits.argmax(-1) == wanted
        inside = wanted >= 0
        loss += float(nn.functional.cross_entropy(logits[inside], wanted[inside], reduction="sum"))
        counted += int(inside.sum())
    return right, loss / max(1, counted)


def gradient_norms(
    model: PreTrainedModel, data: TrainingData, settings: FineTune, seed: int, steps: int
) -> list[float]:
    """The norm of the loss's gradient at each block, mean over the first batches, before anything is trained."""
    blocks = [list(block.parameters()) for block in blocks_of(model.base_model)]
    norms = torch.zeros(len(blocks), dtype=torch.float64)
    model.eval()
    for number, (batch, targets, *_) in enumerate(_epochs(data, settings, seed)):
        if number == steps:
            break
        model.zero_grad(set_to_none=True)
        logits = run(model, batch).logits
        nn.functional.cross_entropy(logits, targets.to(logits.device)).backward()
        for index, parameters in enumerate(blocks):
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norms[index] += float(nn.utils.get_total_norm(gradients))
    model.zero_grad(set_to_none=True)
    return norms.tolist()


def _training_mode(model: nn.Module) -> None:
    """Dropout everywhere but in modules that are frozen: these give the same states every time."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _prefix_cache(model: PreTrainedModel, recipe: Recipe, rows: int) -> PrefixCache | None:
    prefix = len(blocks_of(model.base_model)) if recipe.body_frozen else recipe.prefix
    return PrefixCache(model, prefix, rows) if prefix and not shares_blocks(model.base_model) else None


def _logits(
    model: PreTrainedModel, batch: Batch, rows: list[int], cache: PrefixCache | None, counter: _SavedBytes | None
) -> Tensor:
    with counter.watching() if counter is not None else _nothing():
        logits: Tensor = cache.logits(batch, rows) if cache is not None else run(model, batch).logits
    return logits


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _require_finite(so_far: Training) -> None:
    if not torch.isfinite(torch.tensor(so_far.losses[-1])):
        raise InputError.at(
            "/finetune/learning_rate",
            f"the loss became {so_far.losses[-1]} at step {so_far.steps}; use a smaller learning rate",
        )


def _held_out(model: PreTrainedModel, data: TrainingData, step: int) -> Evaluation:
    model.eval()
    right, loss = evaluate(model, data, data.held_out)
    return Evaluation(step=step, loss=loss, accuracy=float(right.double().mean()))


def _epochs(data: TrainingData, settings: FineTune, seed: int) -> Iterator[tuple[Batch, Tensor, list[int], bool, bool]]:
    """Batches of like length in random order, every row once an epoch.

    With each: the targets, the numbers of its rows, whether it ends an epoch, and whether it is the first epoch's
    largest.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = data.numbers()
    for epoch in range(settings.epochs):
        order = torch.randperm(len(data.train), generator=generator).tolist()
        texts = [data.train[index].content for index in order]
        found = list(batches(data.tokenizer, texts, settings.batch_size, data.length))
        largest = max(range(len(found)), key=lambda index: found[index].input_ids.numel())
        drawn = torch.randperm(len(found), generator=generator).tolist()
        for index in drawn:
            rows = [order[place] for place in found[index].indices]
            targets = torch.tensor([numbers[row] for row in rows])
            yield found[index], targets, rows, index == drawn[-1], epoch == 0 and index == largest


class _SavedBytes:
    """Bytes that autograd keeps for the backward pass, beside the weights."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.bytes = 0
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    @contextmanager
    def watching(self) -> Iterator[None]:
        def pack(tensor: Tensor) -> Tensor:
            storage: Any = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.bytes += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


def _state_bytes(model: nn.Module, trainable: list[nn.Parameter]) -> int:
    """Weights, and for what is trained a gradient and Adam's two moments."""
    return sum(parameter.nbytes for parameter in model.parameters()) + 3 * sum(one.nbytes for one in trainable)
