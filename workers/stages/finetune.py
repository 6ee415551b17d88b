"""Stage `finetune`: makes the tuned checkpoint from the base and the labels of the data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from layerdrift.backends.sources import fingerprint
from layerdrift.backends.tables import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.report import Outputs
from layerdrift.contract.request import AnalysisRequest, FineTune
from workers.models.device import best_device
from workers.models.loading import load_classifier, load_tokenizer
from workers.models.structure import parameters_before
from workers.models.texts import Batch, batches, run, usable_length
from workers.stages.resolve import Checkpoint, Resolved
from workers.stages.tick import Tick

WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1
CLIP_NORM = 1.0
MAX_LABELS = 1_000


@dataclass(frozen=True)
class Tuned:
    """The checkpoint that came out, and what it reaches on texts it was not trained on."""

    checkpoint: Checkpoint
    outputs: Outputs


def finetune(request: AnalysisRequest, resolved: Resolved, folder: Path, uri: str, tick: Tick) -> Tuned:
    """Trains a classifier on the split's training rows and saves it to `folder`; `uri` is where it will be kept.

    The same request gives the same weights on the same kind of machine: head, dropout and order of the rows follow
    the seed.

    Raises:
        InputError: the labels are too many, or the training diverged.
    """
    settings = request.finetune
    if settings is None:
        raise ValueError("this request has no fine-tune")
    labels = sorted({str(row.label) for row in resolved.split.train})
    if len(labels) > MAX_LABELS:
        raise InputError.at(
            "/dataset/label_column", f"{len(labels)} different labels; a classifier takes up to {MAX_LABELS}"
        )
    tokenizer = load_tokenizer(resolved.base.folder, None)
    with torch.random.fork_rng():
        torch.manual_seed(request.seed)
        model = load_classifier(resolved.base.folder, "/base/uri", best_device(), labels)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        length = usable_length(tokenizer, model, request.analysis.max_length)
        losses = _train(model, tokenizer, resolved.split.train, labels, settings, request.seed, length, tick)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    outputs = _evaluated(model.eval(), tokenizer, resolved.split.analysed, labels, length, losses)
    return Tuned(Checkpoint(folder, uri, fingerprint(folder)), outputs)


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    labels: list[str],
    settings: FineTune,
    seed: int,
    length: int,
    tick: Tick,
) -> list[float]:
    """Trains in place; the loss of every step."""
    _freeze(model, settings)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = settings.epochs * -(-len(rows) // settings.batch_size)
    steps = min(steps, settings.max_steps or steps)
    schedule: LRScheduler = get_linear_schedule_with_warmup(optimiser, round(WARMUP_SHARE * steps), steps)
    label_ids = {label: index for index, label in enumerate(labels)}
    losses: list[float] = []
    model.train()
    for batch, targets in _epochs(tokenizer, rows, label_ids, settings, seed, length):
        if len(losses) == steps:
            break
        loss = _loss(model, batch, targets)
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise InputError.at(
                "/finetune/learning_rate",
                f"the loss became {losses[-1]} at step {len(losses)}; take a smaller learning rate",
            )
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        tick(len(losses) / steps, f"step {len(losses)} of {steps}, loss {losses[-1]:.3f}")
    return losses


def _freeze(model: PreTrainedModel, settings: FineTune) -> None:
    body = model.base_model
    frozen: Iterable[nn.Parameter] = ()
    if settings.method == "head":
        frozen = body.parameters()
    elif settings.freeze_first:
        frozen = parameters_before(body, settings.freeze_first)
    for parameter in frozen:
        parameter.requires_grad_(False)


def _epochs(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    label_ids: dict[str, int],
    settings: FineTune,
    seed: int,
    length: int,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Batches of like length in random order, every row once an epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        shuffled = [rows[index] for index in order]
        found = list(batches(tokenizer, [row.text for row in shuffled], settings.batch_size, length))
        for index in torch.randperm(len(found), generator=generator).tolist():
            batch = found[index]
            yield batch, torch.tensor([label_ids[str(shuffled[row].label)] for row in batch.indices])


def _loss(model: PreTrainedModel, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
    logits = run(model, batch).logits
    return nn.functional.cross_entropy(logits, targets.to(logits.device))


def _evaluated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    labels: list[str],
    length: int,
    losses: list[float],
) -> Outputs:
    """Accuracy on rows that were not trained on; a label never trained on counts as wrong."""
    right = 0
    for batch in batches(tokenizer, [row.text for row in rows], 64, length):
        with torch.inference_mode():
            logits = run(model, batch).logits
        predicted = logits.argmax(-1).tolist()
        right += sum(labels[guess] == rows[index].label for guess, index in zip(predicted, batch.indices, strict=True))
    commonest = Counter(row.label for row in rows).most_common(1)[0][1]
    last = losses[-max(1, len(losses) // 10) :]
    return Outputs(
        accuracy=right / len(rows),
        majority_accuracy=commonest / len(rows),
        examples=len(rows),
        labels=labels,
        steps=len(losses),
        final_loss=sum(last) / len(last),
    )
