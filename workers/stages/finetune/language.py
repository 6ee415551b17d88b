"""Language models as they are trained: on answers (SFT), or on which of two answers is preferred (DPO).

Losses are TRL's: the mean cross-entropy of the tokens to give over all batches of a step, and for preferences the
sigmoid loss of Rafailov et al. (2023), whose reference is the model before training, asked once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import FineTune
from workers.models.texts import Batch, known_tokens, padded_for
from workers.results.training import Evaluation
from workers.results.warnings import ReportWarning
from workers.stages.common.inputs import Split
from workers.stages.common.training import Recipe, Step, Task, in_steps, training_dtype
from workers.stages.finetune.sequences import MAX_LENGTH, Dropped, Encoding, Padded, Preference, TokenSequence, padded

WINDOW_BATCHES = 16
"""Rows are sorted by length within so many batches, so that little is padding."""


@dataclass(frozen=True)
class AnswerData:
    """Answers that a language model is to give, and those that its best weights are chosen by.

    warnings: on rows that could not be used.
    """

    tokenizer: PreTrainedTokenizerBase
    train: list[TokenSequence]
    held_out: list[TokenSequence]
    warnings: list[ReportWarning]

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self.train)

    def task(self, model: PreTrainedModel, recipe: Recipe) -> Task:
        """The training of this model."""
        return _Answering(model, self, recipe)


@dataclass(frozen=True)
class PreferenceData:
    """The same with pairs of answers."""

    tokenizer: PreTrainedTokenizerBase
    train: list[Preference]
    held_out: list[Preference]
    warnings: list[ReportWarning]

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self.train)

    def task(self, model: PreTrainedModel, recipe: Recipe) -> Task:
        """The training of this model."""
        return _Preferring(model, self, recipe)


LanguageData = AnswerData | PreferenceData
_Item = TypeVar("_Item")


def language_data(
    tokenizer: PreTrainedTokenizerBase, split: Split, settings: FineTune, positions: int | None = None
) -> LanguageData:
    """The split's rows as tokens.

    Args:
        positions: tokens that the model can read at once; None: as many as there are.

    Raises:
        InputError: the asked length is more than that, no row has an answer within the length, or of preferences two.
    """
    if positions is not None and settings.max_length is not None and settings.max_length > positions:
        detail = f"max_length is {settings.max_length}, but the model reads at most {positions} tokens"
        raise InputError.at("/finetune/max_length", detail)
    length = settings.max_length or min(MAX_LENGTH, positions or MAX_LENGTH)
    encoding = Encoding(tokenizer, length, settings.loss_on == "answers")
    if settings.objective == "dpo":
        pairs, dropped = encoding.preferences(split.train)
        later, more = encoding.preferences(split.held_out)
        return PreferenceData(tokenizer, pairs, later, _told(encoding, len(pairs), dropped, more))
    answers, dropped = encoding.sequences(split.train)
    held_out, more = encoding.sequences(split.held_out)
    return AnswerData(tokenizer, answers, held_out, _told(encoding, len(answers), dropped, more))


def _told(encoding: Encoding, kept: int, dropped: Dropped, of_held_out: Dropped) -> list[ReportWarning]:
    """What there is to say of the rows that were left out; InputError where no training row is kept."""
    dropped.require_some(kept, encoding.length)
    return dropped.plus(of_held_out).warnings(encoding.length)


class _Language:
    """What both objectives have in common: the order of the rows."""

    cached = False

    def __init__(self, model: PreTrainedModel, recipe: Recipe, lengths: list[int]) -> None:
        self._model, self._recipe, self._lengths = model, recipe, lengths
        asked = recipe.settings.gradient_checkpointing
        if asked or (asked is None and model.device.type == "cuda"):
            model.activation_checkpointing_enable({"use_reentrant": False})

    def skip(self, step: Step[list[int]]) -> None:
        """Nothing is kept between steps."""

    def steps(self) -> Iterator[Step[list[int]]]:
        """Numbers of training rows: batches of like length in random order, every row once an epoch."""
        settings, lengths = self._recipe.settings, self._lengths
        generator = torch.Generator().manual_seed(self._recipe.seed)
        window = settings.batch_size * WINDOW_BATCHES
        for epoch in range(settings.epochs):
            order = torch.randperm(len(lengths), generator=generator).tolist()
            found = list[list[int]]()
            for start in range(0, len(order), window):
                inside = sorted(order[start : start + window], key=lambda row: lengths[row])
                found += [inside[at : at + settings.batch_size] for at in range(0, len(inside), settings.batch_size)]
            drawn = [found[index] for index in torch.randperm(len(found), generator=generator).tolist()]
            sizes = [len(rows) * max(lengths[row] for row in rows) for rows in drawn]
            yield from in_steps(drawn, settings, sizes if epoch == 0 else None)


class _Answering(_Language):
    """Supervised fine-tuning."""

    def __init__(self, model: PreTrainedModel, data: AnswerData, recipe: Recipe) -> None:
        super().__init__(model, recipe, [len(one.ids) for one in data.train])
        self._data = data

    def loss(self, part: list[int], step: Step[list[int]]) -> Tensor:
        """Cross-entropy of the part's tokens to give, over those of the whole step, nats."""
        train = self._data.train
        tokens = sum(train[row].answers for rows in step.parts for row in rows)
        found = token_log_probs(self._model, padded([train[row] for row in part]))
        return -found.values.sum() / tokens

    def evaluate(self, number: int) -> Evaluation | None:
        """Cross-entropy by token, nats, and the share of tokens that the model gives."""
        if not self._data.held_out:
            return None
        loss, right, tokens = 0.0, 0, 0
        with torch.inference_mode():
            for part in _batched(self._data.held_out, self._recipe.settings.batch_size):
                found = token_log_probs(self._model, padded(part))
                loss -= float(found.values.double().sum())
                right += int(found.right.sum())
                tokens += len(found.values)
        return Evaluation(step=number, loss=loss / tokens, accuracy=right / tokens)


class _Preferring(_Language):
    """Direct preference optimisation."""

    def __init__(self, model: PreTrainedModel, data: PreferenceData, recipe: Recipe) -> None:
        super().__init__(model, recipe, [max(len(one.ids) for one in pair) for pair in data.train])
        self._data = data
        without_dropout(model)
        half = training_dtype(recipe.settings, model.device) == torch.bfloat16
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):  # as the policy is asked in training
            self._train_reference = self._gains(data.train)
        self._held_out_reference = self._gains(data.held_out)

    def loss(self, part: list[int], step: Step[list[int]]) -> Tensor:
        """Mean loss of the part's pairs, by its share of the step's batches."""
        found = answer_log_probs(self._model, [self._data.train[row] for row in part])
        margins = self._margins(found, self._train_reference[part])
        return -nn.functional.logsigmoid(margins).mean() / len(step.parts)

    def evaluate(self, number: int) -> Evaluation | None:
        """The loss, and the share of pairs whose chosen answer has the larger reward."""
        if not self._data.held_out:
            return None
        margins = self._margins(self._gains(self._data.held_out), self._held_out_reference)
        loss = -nn.functional.logsigmoid(margins).mean()
        return Evaluation(step=number, loss=float(loss), accuracy=float((margins > 0).double().mean()))

    def _gains(self, pairs: Sequence[Preference]) -> Tensor:
        """Log-probabilities of chosen and rejected answers by the model as it is, [N, 2]."""
        if not pairs:
            return torch.zeros(0, 2)
        size = self._recipe.settings.batch_size
        with torch.no_grad():
            return torch.cat([answer_log_probs(self._model, part).cpu() for part in _batched(pairs, size)])

    def _margins(self, found: Tensor, reference: Tensor) -> Tensor:
        """Rewards of the chosen answers less those of the rejected, [N, 2] each -> [N]."""
        gains = found - reference.to(found.device)
        return self._recipe.settings.beta * (gains[:, 0] - gains[:, 1])


def without_dropout(model: nn.Module) -> None:
    """Switches off all dropout, in modules and in what attention reads off its module: the reference has none."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, _DropoutNd))):
                setattr(module, name, 0.0)


@dataclass(frozen=True)
class TokenLogProbs:
    """Of the M tokens to give in a batch: natural logarithms, whether each is the likeliest, and the row it is of."""

    values: Tensor
    right: Tensor
    rows: Tensor


def token_log_probs(model: PreTrainedModel, batch: Padded) -> TokenLogProbs:
    """What a language model says of the tokens to give, [B, T] -> [M]. Logits are computed where they are needed."""
    asked = batch.asked[:, 1:]
    columns = asked.any(0).nonzero()[:, 0]
    read = Batch(batch.ids, batch.mask, batch.mask.bool(), list(range(len(batch.ids))))
    known_tokens(model, read)
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    with padded_for(model, read) as inputs:
        if keeps:
            logits = model(**inputs, use_cache=False, logits_to_keep=columns.to(model.device)).logits
        else:
            logits = model(**inputs, use_cache=False).logits[:, columns.to(model.device)]
    wanted = asked[:, columns].to(logits.device)
    targets = batch.ids[:, columns + 1].to(logits.device)[wanted]
    chosen = logits[wanted].float()
    values = -nn.functional.cross_entropy(chosen, targets, reduction="none")
    rows = wanted.nonzero()[:, 0]
    return TokenLogProbs(values, chosen.detach().argmax(-1) == targets, rows)


def answer_log_probs(model: PreTrainedModel, pairs: Sequence[Preference]) -> Tensor:
    """Sums over the tokens of chosen and rejected answers, [N, 2], nats."""
    found = token_log_probs(model, padded([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]))
    sums = torch.zeros(2 * len(pairs), dtype=torch.float32, device=found.values.device)
    by_answer: Tensor = sums.index_add(0, found.rows, found.values.float())
    return by_answer.view(2, -1).T


def _batched(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
