"""The answers of both models to the texts: how good they are, and how far they differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from layerdrift.backends.tables import Row
from layerdrift.contract.report import Measured, ModelOutputs, Outputs, ReportWarning
from workers.models.loading import Headed
from workers.stages.answers import (
    RANGES,
    TRANSFORMS,
    UNKNOWN,
    UNLABELLED,
    Measure,
    Predicted,
    Questions,
    Scores,
    Targets,
    by_text,
    class_targets,
    divergence_bits,
    grouped,
    over_common_tokens,
    quality,
)
from workers.stages.intervals import change, ratio, share


def class_names(model: PreTrainedModel) -> list[str]:
    """A classifier's classes, by number."""
    id2label: dict[int, str] = model.config.id2label  # type: ignore[assignment]
    return [id2label[index] for index in sorted(id2label)]


def known_targets(questions: Questions, model: PreTrainedModel) -> Tensor | None:
    """The classes of the texts; None where not one label is among the model's."""
    targets = class_targets(questions.rows, class_names(model))
    return targets.classes if targets.known else None


def measured(scores: Scores, measure: Measure) -> Measured:
    """The scores as one number with its 95 % interval over texts.

    Of one question for each text, the share of hits has Wilson's interval; all else has that of the jackknife.
    """
    if measure == "accuracy" and bool((scores.counts <= 1).all()):
        return share(float(scores.sums.sum()), float(scores.counts.sum()))
    return ratio(*grouped(scores), TRANSFORMS[measure], RANGES[measure])


def outputs_of(
    questions: Questions, base: Headed | None, tuned: Headed, tick: Callable[[float], None]
) -> tuple[Outputs, list[ReportWarning]]:
    """One pass over the texts with both models, or the tuned one alone where the base has no such head."""
    texts = len(questions.rows)
    targets, names, warnings = None, [], []
    if tuned.kind == "classifier":
        names = class_names(tuned.model)
        known = class_targets(questions.rows, names)
        targets = known.classes if known.known else None
        warnings = [*_numbered_labels(known, names), *_unknown_labels(questions.rows, targets)]
        warnings += _pair_model(questions, names)
    order = common_order(base, names) if base is not None and tuned.kind == "classifier" else None
    if base is not None and tuned.kind == "classifier" and order is None:
        base = None
        message = "the two classifiers have different classes, so their answers are not compared"
        warnings.append(ReportWarning(code="different_classes", message=message))
    sums = {name: _no_scores(texts) for name in ("base", "tuned", "disagreement", "js")}
    for number, batch in enumerate(questions.batches()):
        found = _with_targets(questions.answered(tuned.model, batch), targets)
        sums["tuned"] = _added(sums["tuned"], quality(found, tuned.kind, texts))
        if base is not None:
            other = _with_targets(questions.answered(base.model, batch, order), targets)
            sums["base"] = _added(sums["base"], quality(other, tuned.kind, texts))
            differs = found.log_probs.argmax(-1) != other.log_probs.argmax(-1)
            sums["disagreement"] = _added(sums["disagreement"], by_text(differs, found.texts, texts))
            js = divergence_bits(*over_common_tokens(found.log_probs, other.log_probs))
            sums["js"] = _added(sums["js"], by_text(js, found.texts, texts))
        tick(min(1.0, (number + 1) * len(batch.indices) / texts))
    judged = tuned.kind != "classifier" or targets is not None

    def of_model(name: str) -> ModelOutputs | None:
        if not judged or (name == "base" and base is None):
            return None
        if tuned.kind == "classifier":
            return ModelOutputs(accuracy=measured(sums[name], "accuracy"))
        return ModelOutputs(perplexity=measured(sums[name], "perplexity"))

    outputs = Outputs(
        kind=tuned.kind,
        examples=texts if tuned.kind == "classifier" else int(sums["tuned"].counts.sum()),
        labelled=None if targets is None else int((targets != UNLABELLED).sum()),
        labels=names,
        base=of_model("base"),
        tuned=of_model("tuned"),
        majority_accuracy=_majority(targets) if targets is not None else None,
        accuracy_change=_difference(sums) if base and judged and tuned.kind == "classifier" else None,
        perplexity_ratio=_perplexity_ratio(sums) if base and tuned.kind != "classifier" else None,
        disagreement=measured(sums["disagreement"], "accuracy") if base else None,
        js_divergence=measured(sums["js"], "kl") if base else None,
    )
    return outputs, warnings


def _difference(sums: dict[str, Scores]) -> Measured:
    """Accuracy of the tuned model less the base model's, on the same texts."""
    difference = sums["tuned"].sums - sums["base"].sums
    return change(float((difference > 0).sum()), float((difference < 0).sum()), float(sums["tuned"].counts.sum()))


def _perplexity_ratio(sums: dict[str, Scores]) -> Measured:
    """Perplexity of the tuned model over the base model's, on the same tokens."""
    rise = Scores(sums["tuned"].sums - sums["base"].sums, sums["tuned"].counts)
    return ratio(*grouped(rise), lambda nats: math.exp(min(nats, 700.0)), (0.0, math.inf))


def _numbered_labels(targets: Targets, names: list[str]) -> list[ReportWarning]:
    own = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    if not targets.numbered or not targets.known or own:
        return []
    shown = ", ".join(f"{index} = {name}" for index, name in enumerate(names[:6]))
    message = f"the labels are numbers and were read as the numbers of the tuned model's classes ({shown})"
    return [ReportWarning(code="labels_as_numbers", message=message)]


PAIR_CLASSES = ("entailment", "contradiction", "not_entailment", "duplicate", "not_duplicate", "paraphrase")
"""Names of classes that a pair of texts has, and no single one."""


def _pair_model(questions: Questions, names: list[str]) -> list[ReportWarning]:
    """A warning where a model of pairs was given single texts."""
    classes = [name for name in names if name.casefold() in PAIR_CLASSES]
    if not classes or any(row.pair is not None for row in questions.rows):
        return []
    message = (
        f"the tuned model's class {classes[0]!r} is one of a pair of texts, but single texts were read; name the "
        "column of the second texts in dataset.text_pair_column"
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


def _majority(targets: Tensor) -> float:
    """The share of the majority class among the texts with a label."""
    labelled = targets[targets != UNLABELLED]
    return int((labelled - UNKNOWN).bincount()[1:].max()) / len(labelled)


def _unknown_labels(rows: list[Row], targets: Tensor | None) -> list[ReportWarning]:
    labelled = sum(row.label is not None for row in rows)
    unknown = labelled if targets is None else int((targets == UNKNOWN).sum())
    if not labelled:
        message = "the data set has no labels, so the accuracy of the classifiers is not known"
        return [ReportWarning(code="answers_not_judged", message=message)]
    if not unknown:
        return []
    message = f"{unknown} of {labelled} labels are no class of the tuned model; " + (
        "accuracy is left out" if targets is None else "they count as answered wrongly"
    )
    found = [ReportWarning(code="unknown_labels", message=message)]
    if targets is None:
        message = "no label of the data set is a class of the tuned model, so its accuracy is not known"
        found.append(ReportWarning(code="answers_not_judged", message=message))
    return found
