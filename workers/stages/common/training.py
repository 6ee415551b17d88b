"""Trains a model under a recipe: what is frozen, in which precision, for how long. Writes no file.

What is trained is a `Task`: here a classifier on labelled rows; those of language models are in
`stages.finetune.language`. Used by the fine-tune itself, by those that serve as nulls, and by the freeze sweep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import FineTune
from workers.models.device import fast_dtype
from workers.models.prefix import PrefixCache
from workers.models.structure import blocks_of, parameters_before, shares_blocks
from workers.models.texts import Batch, batches, run
from workers.results.training import Evaluation
from workers.stages.common.progress import OnProgress
from workers.stages.common.training_state import Curves, Keeping, StateKeeper

CLIP_NORM = 1.0
EVALUATED_AT_ONCE = 64


_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Step(Generic[_Part]):
    """What one optimiser step is made of. parts: batches, whose losses add up.

    ends_epoch: it is an epoch's last. largest: it holds the first epoch's largest batch.
    """

    parts: list[_Part]
    ends_epoch: bool
    largest: bool


class Task(Protocol):
    """What a model is trained on. cached: whether frozen blocks ran once for each row."""

    @property
    def cached(self) -> bool: ...

    def steps(self) -> Iterator[Step[Any]]:
        """All steps of the run, in the order that the seed gives."""

    def loss(self, part: Any, step: Step[Any]) -> Tensor:
        """The part's share of the step's loss, with its graph."""

    def skip(self, step: Step[Any]) -> None:
        """Prepares for what follows a step that an earlier worker made."""

    def evaluate(self, number: int) -> Evaluation | None:
        """How the model does on the held-out rows after so many steps; None where there are none."""


class Trainable(Protocol):
    """Data that a model can be trained on."""

    @property
    def rows(self) -> int:
        """Rows of an epoch."""

    def task(self, model: PreTrainedModel, recipe: Recipe) -> Task:
        """The training of this model."""


def in_steps(parts: Sequence[_Part], settings: FineTune, sizes: Sequence[int] | None) -> Iterator[Step[_Part]]:
    """The batches of an epoch, as many in a step as gradients are accumulated over.

    Args:
        sizes: of the batches in the first epoch; None: of a later one.
    """
    largest = max(range(len(parts)), key=lambda index: sizes[index]) if sizes else -1
    for start in range(0, len(parts), settings.gradient_accumulation):
        end = start + settings.gradient_accumulation
        yield Step(list(parts[start:end]), end >= len(parts), start <= largest < end)


@dataclass(frozen=True)
class TrainingData:
    """Labelled rows and how they are read.

    targets: class numbers of the training rows, by default those of their labels.
    """

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

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self.train)

    def task(self, model: PreTrainedModel, recipe: Recipe) -> Task:
        """The training of this model as a classifier."""
        return _Classification(model, self, recipe)


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
class Training(Curves):
    """What a run left, by step.

    gradient_norms: before they are clipped. cached: the frozen prefix ran once for each row. by_loss: the best step has
    the least loss.
    """

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    held_out: list[Evaluation] = field(default_factory=list)
    training_bytes: int = 0
    cached: bool = False
    by_loss: bool = False

    @property
    def steps(self) -> int:
        """Optimiser steps that were made."""
        return len(self.losses)

    @property
    def best_step(self) -> int:
        """The first step with the best held-out accuracy, then loss; the last one where nothing was held out."""
        if not self.held_out:
            return self.steps
        if self.by_loss:
            return min(self.held_out, key=lambda one: (one.loss, one.step)).step
        return min(self.held_out, key=lambda one: (-one.accuracy, one.loss, one.step)).step


def training_dtype(settings: FineTune, device: torch.device) -> torch.dtype:
    """What products are computed in."""
    if settings.precision == "auto":
        return fast_dtype(device)
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def planned_steps(settings: FineTune, rows: int) -> int:
    """Optimiser steps of a whole run."""
    batches_of_epoch = -(-rows // settings.batch_size)
    steps = settings.epochs * -(-batches_of_epoch // settings.gradient_accumulation)
    return min(steps, settings.max_steps or steps)


def train(
    model: PreTrainedModel,
    data: Trainable,
    recipe: Recipe,
    on_progress: OnProgress,
    at_step: Callable[[int, Training, PreTrainedModel], None] | None = None,
    keeping: Keeping | None = None,
) -> Training:
    """Trains in place; the model is in evaluation mode afterwards.

    The same recipe gives the same weights on the same kind of machine: dropout follows torch's generator, which the
    caller has seeded and forked, and the order of the rows the recipe's seed.

    Args:
        at_step: called after every step, held-out evaluation included.
        keeping: where the state goes that a later worker goes on from.

    Raises:
        InputError: the training diverged.
    """
    settings, run_so_far = recipe.settings, Training(by_loss=recipe.settings.language)
    freeze(model, recipe)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = _optimiser(trainable, settings)
    steps = planned_steps(settings, data.rows)
    schedule = get_scheduler(_SCHEDULES[settings.schedule], optimiser, round(settings.warmup * steps), steps)
    last = min(steps, recipe.stop_after or steps)
    dtype = training_dtype(settings, model.device)
    task = data.task(model, recipe)  # asks the model as it is before the training
    keeper = StateKeeper(keeping or Keeping(), trainable, optimiser, schedule)
    resumed = keeper.resume(run_so_far)
    _training_mode(model)
    for number, step in enumerate(task.steps() if resumed < last else ()):
        if number < resumed:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                task.skip(step)
            continue
        started = time.perf_counter()
        counter = _SavedBytes(trainable) if step.largest else None
        loss = 0.0
        for part in step.parts:
            watching = counter.watching() if counter is not None else nullcontext()
            with watching, torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                share = task.loss(part, step)
            loss += share.item()
            _require_finite(loss, run_so_far.steps + 1)
            share.backward()
        run_so_far.losses.append(loss)
        run_so_far.gradient_norms.append(float(nn.utils.clip_grad_norm_(trainable, CLIP_NORM)))
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        run_so_far.step_seconds.append(time.perf_counter() - started)
        if counter is not None:
            run_so_far.training_bytes = max(run_so_far.training_bytes, counter.bytes + _state_bytes(model, trainable))
        made = run_so_far.steps
        if step.ends_epoch or made == last:
            model.eval()
            evaluation = task.evaluate(made)
            run_so_far.held_out += [evaluation] if evaluation is not None else []
            _training_mode(model)
        if at_step is not None:
            at_step(made, run_so_far, model)
        keeper.keep(run_so_far)
        on_progress(made / last, f"step {made} of {last}, loss {loss:.3f}", {"step": made, "loss": loss})
        if made >= last:
            break
    run_so_far.cached = task.cached
    model.eval()
    return run_so_far


_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def _optimiser(trainable: list[nn.Parameter], settings: FineTune) -> torch.optim.AdamW:
    """AdamW; of language models biases and norms do not decay, as in transformers' trainer."""
    groups: list[dict[str, Any]] = [{"params": trainable}]
    if settings.language and settings.weight_decay:
        whole = [one for one in trainable if one.dim() > 1]
        groups = [{"params": whole}, {"params": [one for one in trainable if one.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


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
    batches_of = (part for step in _epochs(data, settings, seed) for part in step.parts)
    for number, part in enumerate(batches_of):
        if number == steps:
            break
        model.zero_grad(set_to_none=True)
        logits = run(model, part.batch).logits
        nn.functional.cross_entropy(logits, part.targets.to(logits.device)).backward()
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


def _require_finite(loss: float, step: int) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise InputError.at(
            "/finetune/learning_rate", f"the loss became {loss} at step {step}; use a smaller learning rate"
        )


@dataclass(frozen=True)
class _Labelled:
    """A batch with the class of each of its texts, and which training rows they are."""

    batch: Batch
    targets: Tensor
    rows: list[int]


class _Classification:
    """A classifier and its rows; frozen blocks run once for each row where rows come again."""

    def __init__(self, model: PreTrainedModel, data: TrainingData, recipe: Recipe) -> None:
        self._model, self._data, self._recipe = model, data, recipe
        again = recipe.settings.epochs > 1
        self._cache = _prefix_cache(model, recipe, data.rows) if again else None

    @property
    def cached(self) -> bool:
        return self._cache is not None and self._cache.used

    def steps(self) -> Iterator[Step[_Labelled]]:
        return _epochs(self._data, self._recipe.settings, self._recipe.seed)

    def loss(self, part: _Labelled, step: Step[_Labelled]) -> Tensor:
        """Mean cross-entropy of the part's rows, by their share of the step's."""
        cache = self._cache
        logits: Tensor = (
            cache.logits(part.batch, part.rows) if cache is not None else run(self._model, part.batch).logits
        )
        loss = nn.functional.cross_entropy(logits.float(), part.targets.to(logits.device))
        return loss * (len(part.rows) / sum(len(one.rows) for one in step.parts))

    def skip(self, step: Step[_Labelled]) -> None:
        """Runs the frozen blocks on the same batches, which round as they did."""
        if self._cache is not None:
            with torch.random.fork_rng(), torch.no_grad():
                for part in step.parts:
                    self._cache.logits(part.batch, part.rows)

    def evaluate(self, number: int) -> Evaluation | None:
        if not self._data.held_out:
            return None
        right, loss = evaluate(self._model, self._data, self._data.held_out)
        return Evaluation(step=number, loss=loss, accuracy=float(right.double().mean()))


def _epochs(data: TrainingData, settings: FineTune, seed: int) -> Iterator[Step[_Labelled]]:
    """Batches of like length in random order, every row once an epoch."""
    generator = torch.Generator().manual_seed(seed)
    numbers = data.numbers()
    for epoch in range(settings.epochs):
        order = torch.randperm(len(data.train), generator=generator).tolist()
        texts = [data.train[index].content for index in order]
        found = list(batches(data.tokenizer, texts, settings.batch_size, data.length))
        parts = list[_Labelled]()
        for index in torch.randperm(len(found), generator=generator).tolist():
            rows = [order[place] for place in found[index].indices]
            parts.append(_Labelled(found[index], torch.tensor([numbers[row] for row in rows]), rows))
        sizes = [part.batch.input_ids.numel() for part in parts]
        yield from in_steps(parts, settings, sizes if epoch == 0 else None)


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
