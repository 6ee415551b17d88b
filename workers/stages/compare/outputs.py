"""The answers of both models to the texts: how good they are, and how far they differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backends.tables.reading import Row
from workers.analysis.agreement import agreement
from workers.analysis.mcnemar import mcnemar_p
from workers.models.loading import Headed, HeadKind
from workers.results.measured import Measured
from workers.results.outputs import ModelOutputs, Outputs
from workers.results.text_scores import ScoreName, TextScores, hashes
from workers.results.warnings import ReportWarning
from workers.stages.common.evaluation import (
    RANGES,
    TRANSFORMS,
    UNKNOWN,
    UNLABELLED,
    EvalSet,
    Measure,
    Predicted,
    Scores,
    Targets,
    by_text,
    class_targets,
    divergence_bits,
    over_common_tokens,
    quality,
)
from workers.stages.common.intervals import change, ratio, share
from workers.stages.compare.answer_outputs import AnswerScores, answer_outputs
from workers.stages.compare.divergent_texts import TopAnswers, divergent_texts


def class_names(model: PreTrainedModel) -> list[str]:
    """A classifier's classes, by number."""
    id2label: dict[int, str] = model.config.id2label  # type: ignore[assignment]
    return [id2label[index] for index in sorted(id2label)]


def known_targets(eval_set: EvalSet, model: PreTrainedModel) -> Tensor | None:
    """The classes of the texts; None where not one label is among the model's."""
    targets = class_targets(eval_set.rows, class_names(model))
    return targets.classes if targets.known else None


def measured(eval_set: EvalSet, scores: Scores, measure: Measure) -> Measured:
    """The scores as one number with its 95 % interval over texts: of a share Wilson's, else that of the jackknife."""
    if measure == "accuracy":
        return share(*eval_set.by_unit(scores))
    return ratio(*eval_set.grouped(scores), TRANSFORMS[measure], RANGES[measure])


def gained(eval_set: EvalSet, before: Scores, after: Scores) -> Measured:
    """The change of a share of right answers to the same texts, one question each, with its interval."""
    difference = after.less(before)
    gains, losses = (
        eval_set.by_unit(difference._replace(sums=one.double())).sums
        for one in (difference.sums > 0, difference.sums < 0)
    )
    return change(gains, losses, eval_set.by_unit(difference).counts)


class OutputsFound(NamedTuple):
    """answers: what both models give to the tokens of answers. by_text: of the tuned model; None: it has no metric."""

    outputs: Outputs
    answers: AnswerScores
    warnings: list[ReportWarning]
    by_text: TextScores | None


def outputs_of(
    eval_set: EvalSet, base: Headed | None, tuned: Headed, on_progress: Callable[[float], None]
) -> OutputsFound:
    """One pass over the texts with both models, or the tuned one alone where the base has no such head."""
    texts = len(eval_set.rows)
    targets, names, warnings = None, [], []
    if tuned.kind == "classifier":
        names = class_names(tuned.model)
        known = class_targets(eval_set.rows, names)
        targets = known.classes if known.known else None
        warnings = [*_numbered_labels(known, names), *_unknown_labels(eval_set.rows, targets)]
        warnings += _pair_model(eval_set, names)
    order = common_order(base, names) if base is not None and tuned.kind == "classifier" else None
    if base is not None and tuned.kind == "classifier" and order is None:
        base = None
        message = "the two classifiers have different classes, so their outputs are not compared"
        warnings.append(ReportWarning(code="different_classes", message=message))
    scores, answers = _PairScores(tuned.kind, texts, targets), AnswerScores(texts)
    for number, batch in enumerate(eval_set.batches()):
        for span in eval_set.spans(batch):
            found = eval_set.predict_all(tuned.model, batch, span=span)
            of_base = eval_set.predict_all(base.model, batch, order, span) if base is not None else None
            scores.add(found.words(), of_base.words() if of_base is not None else None)
            answers.add(found, of_base)
        on_progress(min(1.0, (number + 1) * len(batch.indices) / texts))
    outputs = _as_outputs(eval_set, scores, names, base is not None)
    told = answer_outputs(eval_set, answers, compared=base is not None)
    return OutputsFound(
        replace(outputs, answers=told), answers, warnings, _by_text(eval_set, scores, answers if told else None)
    )


def _by_text(eval_set: EvalSet, scores: _PairScores, answers: AnswerScores | None) -> TextScores | None:
    """What the tuned model's metric is made of; None where it has none."""
    if scores.kind == "classifier" and scores.targets is None:
        return None
    name: ScoreName = "answers_perplexity" if answers is not None else "perplexity"
    found = scores.sums["tuned"] if answers is None else answers.tuned
    return TextScores(
        name="accuracy" if scores.kind == "classifier" else name,
        texts=hashes(eval_set.rows),
        units=tuple(eval_set.tokenization.units_of(len(eval_set.rows)).tolist()),
        sums=tuple(found.sums.tolist()),
        counts=tuple(found.counts.tolist()),
    )


class _PairScores:
    """The scores of both models, text by text, as batches of answers come.

    sums: by what is summed; of the base, disagreement and js only where the base answers. answers: the class that a
    model gives to each text; known labels only. top: of classifiers.
    """

    def __init__(self, kind: HeadKind, texts: int, targets: Tensor | None) -> None:
        self.kind, self.targets = kind, targets
        self.sums = {name: _no_scores(texts) for name in ("base", "tuned", "disagreement", "js")}
        self.top = TopAnswers(texts) if kind == "classifier" else None
        self.answers = {name: torch.zeros(texts, dtype=torch.int64) for name in ("base", "tuned")}
        self._texts = texts

    def add(self, tuned: Predicted, base: Predicted | None) -> None:
        """The answers of both models to one batch."""
        tuned = self._add_model("tuned", tuned)
        if base is None:
            return
        base = self._add_model("base", base)
        differs = tuned.log_probs.argmax(-1) != base.log_probs.argmax(-1)
        self._add("disagreement", by_text(differs, tuned.texts, self._texts))
        js = divergence_bits(*over_common_tokens(tuned.log_probs, base.log_probs))
        self._add("js", by_text(js, tuned.texts, self._texts))

    def _add_model(self, name: str, found: Predicted) -> Predicted:
        found = _with_targets(found, self.targets)
        self._add(name, quality(found, self.kind, self._texts))
        if self.top is not None:
            self.top.add(name, found)
        if self.targets is not None:
            self.answers[name][found.texts] = found.log_probs.argmax(-1)
        return found

    def _add(self, name: str, scores: Scores) -> None:
        self.sums[name] = _added(self.sums[name], scores)


def _as_outputs(eval_set: EvalSet, scores: _PairScores, names: list[str], compared: bool) -> Outputs:
    """The scores as numbers with intervals; `compared`: the base has answered too."""
    kind, targets, sums = scores.kind, scores.targets, scores.sums
    majority = _Majority.of(targets) if targets is not None else None
    return Outputs(
        kind=kind,
        examples=len(eval_set.rows) if kind == "classifier" else int(sums["tuned"].counts.sum()),
        labelled=None if targets is None else int((targets != UNLABELLED).sum()),
        labels=names,
        base=_of_model(eval_set, scores, "base") if compared else None,
        tuned=_of_model(eval_set, scores, "tuned"),
        majority_accuracy=majority.share if majority else None,
        majority_change=gained(eval_set, majority.scores, sums["tuned"]) if majority else None,
        accuracy_change=gained(eval_set, sums["base"], sums["tuned"]) if compared and majority else None,
        mcnemar_p=_mcnemar(eval_set, sums) if compared and majority else None,
        perplexity_ratio=_perplexity_ratio(eval_set, sums) if compared and kind != "classifier" else None,
        disagreement=measured(eval_set, sums["disagreement"], "accuracy") if compared else None,
        js_divergence=measured(eval_set, sums["js"], "kl") if compared else None,
        divergent=divergent_texts(eval_set.rows, sums["js"], scores.top, names)
        if compared and kind != "causal_lm"
        else None,
    )


def _of_model(eval_set: EvalSet, scores: _PairScores, name: str) -> ModelOutputs | None:
    """None for a classifier without known labels."""
    if scores.targets is not None:
        accuracy = measured(eval_set, scores.sums[name], "accuracy")
        return ModelOutputs(accuracy=accuracy, mcc=_mcc(eval_set, scores.targets, scores.answers[name]))
    if scores.kind == "classifier":
        return None
    return ModelOutputs(perplexity=measured(eval_set, scores.sums[name], "perplexity"))


def _mcnemar(eval_set: EvalSet, sums: dict[str, Scores]) -> float | None:
    """Of the accuracies of both models; None where texts are not independent of each other."""
    if eval_set.tokenization.units is not None:
        return None
    difference = sums["tuned"].less(sums["base"]).sums
    return mcnemar_p(int((difference > 0).sum()), int((difference < 0).sum()))


def _perplexity_ratio(eval_set: EvalSet, sums: dict[str, Scores]) -> Measured:
    """Perplexity of the tuned model over the base model's, on the same tokens."""
    rise = sums["tuned"].less(sums["base"])
    return ratio(*eval_set.grouped(rise), lambda nats: math.exp(min(nats, 700.0)), (0.0, math.inf))


def _mcc(eval_set: EvalSet, targets: Tensor, answers: Tensor) -> Measured:
    """How far the answers go with the labels, and what chance alone hardly reaches."""
    labelled = targets != UNLABELLED
    labels = targets[labelled] - UNKNOWN  # a label that is no class of the model is a class by itself, never predicted
    units = eval_set.tokenization.units_of(len(targets))[labelled]
    try:
        found = agreement(labels, answers[labelled] - UNKNOWN, units)
    except ValueError:
        return Measured(value=None, undefined="all texts have the same label")
    return Measured(value=found.mcc, noise_floor=found.by_chance)


class _Majority(NamedTuple):
    """The commonest label's share of the texts with a label, and what always answering it would score."""

    share: float
    scores: Scores

    @staticmethod
    def of(targets: Tensor) -> _Majority:
        labelled = targets != UNLABELLED
        commonest = int((targets[labelled] - UNKNOWN).bincount()[1:].argmax())
        scores = Scores((targets == commonest).double(), labelled.double())
        return _Majority(float(scores.sums.sum() / scores.counts.sum()), scores)


def _numbered_labels(targets: Targets, names: list[str]) -> list[ReportWarning]:
    own = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    if not targets.numbered or not targets.known or own:
        return []
    shown = ", ".join(f"{index} = {name}" for index, name in enumerate(names[:6]))
    message = f"the labels are numbers and were read as class indices of the tuned model ({shown})"
    return [ReportWarning(code="labels_as_numbers", message=message)]


PAIR_CLASSES = ("entailment", "contradiction", "not_entailment", "duplicate", "not_duplicate", "paraphrase")
"""Names of classes that a pair of texts has, and no single one."""


def _pair_model(eval_set: EvalSet, names: list[str]) -> list[ReportWarning]:
    """A warning where a model of pairs was given single texts."""
    classes = [name for name in names if name.casefold() in PAIR_CLASSES]
    if not classes or any(row.pair is not None for row in eval_set.rows):
        return []
    message = (
        f"the tuned model's class {classes[0]!r} describes a pair of texts, but single texts were read; set "
        "dataset.text_pair_column to the column of the second texts"
    )
    return [ReportWarning(code="single_texts_of_pairs", message=message)]


def _no_scores(texts: int) -> Scores:
    return Scores(torch.zeros(texts, dtype=torch.float64), torch.zeros(texts, dtype=torch.float64))


def _added(one: Scores, other: Scores) -> Scores:
    return Scores(one.sums + other.sums, one.counts + other.counts)


def _with_targets(predicted: Predicted, targets: Tensor | None) -> Predicted:
    """A classifier's answers with the right classes beside them."""
    return predicted if targets is None else predicted._replace(targets=targets[predicted.texts])


def common_order(base: Headed, names: list[str]) -> list[int] | None:
    """The base's classes in the tuned model's order; None where the classes differ."""
    known = class_names(base.model)
    return [known.index(name) for name in names] if sorted(known) == sorted(names) else None


def _unknown_labels(rows: list[Row], targets: Tensor | None) -> list[ReportWarning]:
    labelled = sum(row.label is not None for row in rows)
    unknown = labelled if targets is None else int((targets == UNKNOWN).sum())
    if not labelled:
        message = "the data set has no labels, so the accuracy of the classifiers is unknown"
        return [ReportWarning(code="answers_not_evaluated", message=message)]
    if not unknown:
        return []
    message = f"{unknown} of {labelled} labels are not classes of the tuned model; " + (
        "accuracy is omitted" if targets is None else "they count as errors"
    )
    found = [ReportWarning(code="unknown_labels", message=message)]
    if targets is None:
        message = "no label of the data set is a class of the tuned model, so its accuracy is unknown"
        found.append(ReportWarning(code="answers_not_evaluated", message=message))
    return found
