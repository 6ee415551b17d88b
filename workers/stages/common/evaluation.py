"""What models answer, and how good that is: classifiers, language models, and bodies without a head.

Every judgement is a sum and a count for each text, so that intervals over texts follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backends.tables.reading import Row
from workers.models.chats import ASSISTANT
from workers.models.known_head import KnownHead
from workers.models.loading import HeadKind, body_of
from workers.models.prefix import PrefixCache
from workers.models.texts import Batch, batches, run
from workers.stages.common.moment_accumulator import BATCH_TEXTS, TokenizationSpec, batch_rows

LM_BATCH_TEXTS = 4
MASK_EVERY = 7
"""A masked language model is asked for every seventh token: about the share that it was trained with."""

Measure = Literal["accuracy", "perplexity", "kl", "state_change"]
TRANSFORMS: dict[Measure, Callable[[float], float]] = {
    "accuracy": float,
    "perplexity": lambda nats: math.exp(min(nats, 700.0)),
    "kl": float,
    "state_change": math.sqrt,
}
RANGES: dict[Measure, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "perplexity": (1.0, math.inf),
    "kl": (0.0, math.inf),
    "state_change": (0.0, math.inf),
}


class Scores(NamedTuple):
    """Sums and counts for each of N texts, [N] each; the measure is a function of their ratio."""

    sums: Tensor
    counts: Tensor

    def less(self, other: Scores) -> Scores:
        """What this has more than another of the same texts."""
        return Scores(self.sums - other.sums, self.counts)

    def plus(self, other: Scores) -> Scores:
        """Of these examples and others of the same texts."""
        return Scores(self.sums + other.sums, self.counts + other.counts)

    @staticmethod
    def none(texts: int) -> Scores:
        """Of no examples yet."""
        return Scores(*torch.zeros(2, texts, dtype=torch.float64))


class Predicted(NamedTuple):
    """log_probs: [M, C] over classes or tokens, natural logarithms. targets: [M], -1 unknown. texts: [M].

    Of chats also, [M] bool each, which targets count as words of the text, which are of an answer (its end token
    included), and which end the last answer; None: no text is a chat, and all of them count.
    """

    log_probs: Tensor
    targets: Tensor
    texts: Tensor
    counted: Tensor | None = None
    answers: Tensor | None = None
    ends: Tensor | None = None

    def words(self) -> Predicted:
        """Those that count."""
        if self.counted is None:
            return self
        return Predicted(self.log_probs[self.counted], self.targets[self.counted], self.texts[self.counted])

    def of(self, chosen: Tensor) -> Predicted:
        """Some of them."""
        return Predicted(self.log_probs[chosen], self.targets[chosen], self.texts[chosen])


@dataclass(frozen=True)
class EvalSet:
    """The texts that models are asked about, and their right answers where they are known.

    known: by `id` of a model, its states at these texts where they are known. heads: by `id` of a model of which no
    more than its head is in memory, that head on known states.
    """

    tokenization: TokenizationSpec
    rows: list[Row]
    kind: HeadKind
    known: Mapping[int, PrefixCache] = field(default_factory=dict)
    heads: Mapping[int, KnownHead] = field(default_factory=dict)

    def batches(self) -> Iterator[Batch]:
        """All texts once."""
        size = BATCH_TEXTS if self.kind == "classifier" else LM_BATCH_TEXTS
        yield from batches(
            self.tokenization.tokenizer, [row.content for row in self.rows], size, self.tokenization.length
        )

    def first(self, texts: int, tokens: int) -> EvalSet:
        """The first texts; of a causal language model, which answers at every token, the first with so many tokens."""
        rows = self.rows[:texts]
        if self.kind == "causal_lm":
            rows = rows[: len(self.tokenization.within([row.content for row in rows], tokens)[0])]
        return replace(self, rows=rows)

    def with_last(self, model: PreTrainedModel, batches: Sequence[Batch], last: Sequence[Tensor]) -> EvalSet:
        """The same texts, and of a model with its head alone in memory the last states of some batches.

        Args:
            last: of each batch, [B, T, D], as the body puts them out.
        """
        rows = {
            text: state[row, :length]
            for batch, state in zip(batches, last, strict=True)
            for row, (text, length) in enumerate(zip(batch.indices, batch.attention_mask.sum(1).tolist(), strict=True))
        }
        return replace(self, heads={id(model): KnownHead(model, rows.__getitem__)})

    def grouped(self, scores: Scores) -> Scores:
        """Sums by text become sums by group of texts, [N] -> [G], for a jackknife."""
        return _summed(scores, self.tokenization.groups_of(len(scores.sums)))

    def by_unit(self, scores: Scores) -> Scores:
        """Sums by text become sums by unit of texts that are alike, [N] -> [M]; without such units they stay."""
        return (
            scores if self.tokenization.units is None else _summed(scores, self.tokenization.units_of(len(scores.sums)))
        )

    def spans(self, batch: Batch) -> Iterator[tuple[int, int] | None]:
        """The parts of a batch that are asked about one after another; None: all of it."""
        head = next(iter(self.heads.values()), None)
        yield from head.spans(batch) if head is not None and self.kind == "causal_lm" else (None,)

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        order: list[int] | None = None,
        span: tuple[int, int] | None = None,
    ) -> Predicted:
        """What a model answers on a batch, about the words of its texts.

        Args:
            order: the model's classes that are another model's class 0, 1 …; None: they are the same.
            span: the tokens whose next ones are asked for, of `spans`.
        """
        return self.predict_all(model, batch, order, span).words()

    def predict_all(
        self,
        model: PreTrainedModel,
        batch: Batch,
        order: list[int] | None = None,
        span: tuple[int, int] | None = None,
    ) -> Predicted:
        """The same with the special tokens of a chat's answers."""
        with torch.inference_mode():
            head = self.heads.get(id(model))
            if head is not None and span is not None:
                return _continued(head.logits(batch, span), batch, span)
            if self.kind == "classifier":
                return self._classified(model, batch, order)
            if self.kind == "masked_lm":
                return self._masked(model, batch)
            return _continued(self._logits(model, batch), batch)

    def _logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        cache = self.known.get(id(model))
        found: Tensor = run(model, batch).logits if cache is None else cache.logits(batch, batch.indices)
        return found

    def _classified(self, model: PreTrainedModel, batch: Batch, order: list[int] | None) -> Predicted:
        head = self.heads.get(id(model))
        logits = self._logits(model, batch) if head is None else head.answers(batch)
        log_probs = logits.float().cpu().log_softmax(-1)
        if order is not None:
            log_probs = log_probs[:, order]
        return Predicted(log_probs, torch.full((len(batch.indices),), -1), torch.tensor(batch.indices))

    def _masked(self, model: PreTrainedModel, batch: Batch) -> Predicted:
        place = (batch.real.cumsum(1) - 1).where(batch.real, torch.tensor(-1))
        asked = place % MASK_EVERY == torch.minimum(batch.real.sum(1, keepdim=True) - 1, torch.tensor(3))
        asked &= batch.real
        hidden = batch.input_ids.masked_fill(asked, int(self.tokenization.tokenizer.mask_token_id))
        logits = run(model, batch._replace(input_ids=hidden)).logits.cpu()
        texts = torch.tensor(batch.indices)[:, None].expand_as(asked)
        return Predicted(logits[asked].float().log_softmax(-1), batch.input_ids[asked], texts[asked])


def _continued(logits: Tensor, batch: Batch, span: tuple[int, int] | None = None) -> Predicted:
    """The next token at every place that has a real one after it.

    Args:
        logits: of the tokens of a span, by default of all, [B, last - first, V].
    """
    start, end = span or (0, batch.input_ids.shape[1])
    answers = ends = None
    asked = batch.real
    if batch.roles is not None:
        answers = (batch.roles == ASSISTANT) & (batch.attention_mask > 0)
        ends = _ends(answers, batch.real)
        asked = asked | answers
    asked = asked[:, start + 1 : end + 1]
    log_probs = logits.cpu()[:, : asked.shape[1]][asked].float().log_softmax(-1)
    texts = torch.tensor(batch.indices)[:, None].expand_as(asked)[asked]

    def kept(whole: Tensor) -> Tensor:
        return whole[:, start + 1 : end + 1][asked]

    targets = kept(batch.input_ids)
    if answers is None or ends is None:
        return Predicted(log_probs, targets, texts)
    return Predicted(log_probs, targets, texts, kept(batch.real), kept(answers), kept(ends))


def _ends(answers: Tensor, real: Tensor) -> Tensor:
    """The token that ends the last answer of each text, where it is a special one, [B, T] bool."""
    places = torch.arange(answers.shape[1])
    last = torch.where(answers, places, torch.tensor(-1)).amax(1, keepdim=True)
    return (places == last) & answers & ~real


UNKNOWN, UNLABELLED = -1, -2
"""In place of a class: a label that is none of the model's, which counts as a wrong prediction, or no label at all."""


class Targets(NamedTuple):
    """classes: [N], the class of every row's label, UNKNOWN, or UNLABELLED. numbered: read as numbers of classes."""

    classes: Tensor
    numbered: bool

    @property
    def known(self) -> bool:
        """Whether any label is a class of the model."""
        return bool((self.classes >= 0).any())


def class_targets(rows: list[Row], names: list[str]) -> Targets:
    """The classes of the rows' labels: by name, else by number where every label is one and within range.

    Capital and small letters are alike, unless classes differ in nothing else.
    """
    folded = len({name.casefold() for name in names}) == len(names)
    distinct = names if len(set(names)) == len(names) else []  # two classes of one name are told by number alone
    by_name = {name.casefold() if folded else name: index for index, name in enumerate(distinct)}
    labels = [_label(row, by_name, folded) for row in rows]
    found = [UNLABELLED if label is None else by_name.get(label, UNKNOWN) for label in labels]
    numbers = [UNLABELLED if label is None else _class_number(label, len(names)) for label in labels]
    without_names = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    if any(index >= 0 for index in found) and not without_names:
        return Targets(torch.tensor(found), numbered=False)
    if UNKNOWN in numbers:  # labels from 1 to C would be read as the class after theirs
        numbers = [min(number, UNKNOWN) for number in numbers]
    return Targets(torch.tensor(numbers), numbered=not without_names)


def _label(row: Row, by_name: dict[str, int], folded: bool) -> str | None:
    """A row's label as `by_name` has it; None where it has none, which data sets such as SNLI write as -1."""
    label = None if row.label is None else row.label.strip()
    label = label.casefold() if label is not None and folded else label
    return None if label == "-1" and label not in by_name else label


def _class_number(label: str, classes: int) -> int:
    """The class that a label such as 1, 1.0 or LABEL_1 is the number of; UNKNOWN where it is none."""
    digits = label.casefold().removeprefix("label_")
    whole = digits.removesuffix(".0")
    return int(whole) if whole.isascii() and whole.isdecimal() and int(whole) < classes else UNKNOWN


def quality(predicted: Predicted, kind: HeadKind, texts: int) -> Scores:
    """Right answers (classifiers) or negative log-likelihood in nats (language models) by text."""
    if kind == "classifier":
        labelled = predicted.targets != UNLABELLED
        values = (predicted.log_probs.argmax(-1) == predicted.targets).double()[labelled]
        return by_text(values, predicted.texts[labelled], texts)
    values = -predicted.log_probs.gather(1, predicted.targets[:, None])[:, 0].double()
    return by_text(values, predicted.texts, texts)


def by_text(values: Tensor, numbers: Tensor, texts: int) -> Scores:
    """Values [M] of examples, summed and counted by the number of their text."""
    zeros = torch.zeros(texts, dtype=torch.float64)
    return Scores(
        zeros.index_add(0, numbers, values.double()), zeros.index_add(0, numbers, torch.ones_like(values).double())
    )


def _summed(scores: Scores, numbers: Tensor) -> Scores:
    zeros = torch.zeros(int(numbers.max()) + 1, dtype=torch.float64)
    return Scores(zeros.index_add(0, numbers, scores.sums), zeros.index_add(0, numbers, scores.counts))


def divergence_bits(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions given as log-probabilities, [M, C] -> [M], bits, 0 to 1."""
    middle = torch.logaddexp(one, other) - math.log(2)
    return ((kl_bits(one, middle) + kl_bits(other, middle)) / 2).clamp(0.0, 1.0)


def over_common_tokens(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities over the tokens that both vocabularies have, [M, C] and [M, C'] -> [M, min(C, C')] each."""
    if one.shape[-1] == other.shape[-1]:
        return one, other
    common = min(one.shape[-1], other.shape[-1])
    return one[:, :common].log_softmax(-1), other[:, :common].log_softmax(-1)


def kl_bits(one: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence of `other` from `one`, given as log-probabilities; [M, C] -> [M], bits, >= 0."""
    return ((one.exp() * (one - other)).sum(-1) / math.log(2)).clamp_min(0.0)


class Evaluator:
    """Scores a model again and again, each time with other parts grafted into it.

    Args:
        eval_set: the texts; `kind` of a body without a head does not matter.
        headed: whether the model has a head.
        targets: [N] classes of the texts, -1 unknown; None: the texts have no labels that the model knows.
    """

    def __init__(self, eval_set: EvalSet, headed: bool, targets: Tensor | None) -> None:
        self._eval_set = eval_set
        self._targets = torch.full((len(eval_set.rows),), -1) if targets is None else targets
        self._reference: Tensor | None = None
        self.measure: Measure = "perplexity"
        if not headed:
            self.measure = "state_change"
        elif eval_set.kind == "classifier":
            self.measure = "kl" if targets is None else "accuracy"

    def scores(self, model: PreTrainedModel, asked: EvalSet | None = None) -> Scores:
        """Of the model as it is now; the first call fixes what `kl` and `state_change` are measured from.

        Args:
            asked: the same texts with states that are known now.
        """
        asked = asked or self._eval_set
        if self.measure == "perplexity":
            return _perplexity(asked, model)
        if self.measure == "state_change":
            reader, body = asked.tokenization.states, body_of(model)
            return self.change((batch, reader.states(body, batch)[-1]) for batch in asked.batches())
        answers = _log_probs(asked, model)
        if self._reference is None:
            self._reference = answers
        ones = torch.ones(len(answers), dtype=torch.float64)
        if self.measure == "accuracy":
            return Scores((answers.argmax(-1) == self._targets).double(), (self._targets != UNLABELLED).double())
        return Scores(kl_bits(self._reference, answers).double(), ones)

    def change(self, last: Iterable[tuple[Batch, Tensor]]) -> Scores:
        """How far texts' mean states moved from those of the first call: a body's last states by batch, [B, T, D]."""
        tokenization, texts = self._eval_set.tokenization, len(self._eval_set.rows)
        parts = []
        for whole, state in last:
            batch = tokenization.known(whole)
            kept = torch.tensor(batch.indices)[batch.real.any(1)]
            parts.append((batch_rows([state.float().cpu()], batch, causal=False).mean[0], kept))
        means = _in_order(parts[0][0], parts, texts)
        if self._reference is None:
            self._reference = means
        moved = (means.double() - self._reference.double()).square().sum(1)
        return Scores(moved, self._reference.double().square().sum(1))


def _perplexity(asked: EvalSet, model: PreTrainedModel) -> Scores:
    texts = len(asked.rows)
    whole = Scores.none(texts)
    for batch in asked.batches():
        for span in asked.spans(batch):
            whole = whole.plus(quality(asked.predict(model, batch, span=span), asked.kind, texts))
    return whole


def _log_probs(asked: EvalSet, model: PreTrainedModel) -> Tensor:
    found = [asked.predict(model, batch) for batch in asked.batches()]
    return _in_order(found[0].log_probs, [(one.log_probs, one.texts) for one in found], len(asked.rows))


def _in_order(like: Tensor, parts: list[tuple[Tensor, Tensor]], texts: int) -> Tensor:
    whole = like.new_zeros(texts, like.shape[1])
    for values, numbers in parts:
        whole[numbers] = values
    return whole
