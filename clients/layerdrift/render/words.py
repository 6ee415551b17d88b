"""A report in plain sentences, the same in HTML and Markdown. Says no more than the numbers do."""

from __future__ import annotations

import math

from layerdrift.contract.report import (
    ChangedLatent,
    Layer,
    Measured,
    ModelOutputs,
    Outputs,
    Report,
    SaeRunName,
    Zone,
)

ZONE_MEANING = {
    "general": "kept the base model's representations",
    "transitional": "changed in part",
    "specialised": "changed most",
}


BEYOND_CHANCE = 2.0
"""Cosines of unrelated directions deviate from 0 by one over the root of the width; so many times that is a sign."""

STRATEGIES = {
    "recommended": "as many as grafts or drift predict",
    "nothing": "freeze nothing",
    "half": "freeze half",
    "gradient_norm": "least gradient norm, as many",
}


def headline(report: Report) -> str:
    """The finding in one sentence."""
    if _identical(report):
        return "Below their heads the two models are identical on these texts: no layer drifted at all."
    if any(warning.code == "answers_not_explained" for warning in report.warnings):
        most = max(layer.drift for layer in report.layers)
        return (
            f"Drift (1 - CKA) stays at {most:.3f} or below at every layer, which does not explain the changed answers."
        )
    first, last = report.layers[0], report.layers[-1]
    return (
        f"Drift (1 - CKA) goes from {first.drift:.3f} at the {first.name} to {last.drift:.3f} at {last.name}: "
        + "; ".join(f"{span(zone)} {ZONE_MEANING[zone.name]}" for zone in _joined(report.zones))
        + "."
    )


def _joined(zones: list[Zone]) -> list[Zone]:
    """Neighbours of one name as one: an unmoved bottom and a layer above it that hardly moved read alike."""
    joined: list[Zone] = []
    for zone in zones:
        if joined and joined[-1].name == zone.name:
            joined[-1] = joined[-1].model_copy(update={"last": zone.last})
        else:
            joined.append(zone)
    return joined


def span(zone: Zone) -> str:
    """A zone's layers in words."""
    if zone.first == zone.last:
        return f"layer {zone.first}"
    return f"layers {zone.first} to {zone.last}"


def advice(report: Report) -> str:
    """What to freeze next time, and how far it can be trusted."""
    recommendation = report.recommendation
    if _identical(report):
        return recommendation.evidence
    if recommendation.basis == "none":
        return f"No advice on what to freeze. {recommendation.evidence}"
    if recommendation.freeze_first == 0:
        return f"Freeze nothing ({recommendation.basis}). {recommendation.evidence}"
    return (
        f"Freeze the embeddings and the first {recommendation.freeze_first} blocks next time "
        f"({recommendation.basis}). {recommendation.evidence}"
    )


def outcome(report: Report) -> str | None:
    """How well the models answer; None where that could not be judged."""
    outputs = report.outputs
    if outputs is None or outputs.tuned is None:
        return None
    said = _quality(outputs, outputs.tuned)
    if report.finetune is not None:
        said = f"After {report.finetune.kept_step} steps the fine-tune {said}"
    else:
        said = f"The tuned model {said}"
        if outputs.base is not None:
            said += f"; the base model {_quality(outputs, outputs.base)}"
    if outputs.perplexity_ratio is not None and outputs.perplexity_ratio.value is not None:
        said += f". The tuned model's perplexity is {outputs.perplexity_ratio.value:.3g} times the base model's"
        said += _between(outputs.perplexity_ratio, "{:.3g}")
    if outputs.majority_accuracy is not None:
        said += f"; majority class {outputs.majority_accuracy:.1%}"
    if outputs.disagreement is not None and outputs.disagreement.value is not None:
        said += f". The two models disagree on {outputs.disagreement.value:.1%} of {outputs.examples} answers"
    return said + "."


def latent(found: ChangedLatent, width: int) -> str:
    """What is known of a changed latent; a direction no nearer to a label's than chance, by the width, is left out."""
    said = (
        f"Fires on {found.base_rate:.2%} of the tokens in the base model and on {found.tuned_rate:.2%} in the tuned one"
    )
    said += f"; cosine of its directions there {found.cosine:.2f}."
    if found.leans is not None:
        said += (
            f" {found.leans.share:.0%} of its activation is on texts labelled “{found.leans.label}”, which have "
            f"{found.leans.expected:.0%} of the tokens."
        )
    if found.promotes:
        said += f" Read off as it is, its direction raises most the logits of {', '.join(map(repr, found.promotes))}."
    if found.probe is not None and found.probe.cosine > BEYOND_CHANCE / math.sqrt(width):
        said += f" Of the labels its direction points most to “{found.probe.label}” (cosine {found.probe.cosine:.2f})."
    return said


UNREAD_SHOWN = 0.01
"""Beyond this share of tokens that were not read, the first screen says so."""

FIRST_SCREEN = (
    "answers_worse",
    "answers_not_explained",
    "adapter_base",
    "tokenizers_differ",
    "no_better_than_majority",
)
"""Codes of warnings without which the finding reads as something else."""


def cautions(report: Report) -> list[str]:
    """What must stand beside the finding itself, on the first screen."""
    said = [warning.message for warning in report.warnings if warning.code in FIRST_SCREEN]
    data = report.dataset
    if data.unread_share is not None and data.unread_share > UNREAD_SHOWN:
        said.append(
            f"{data.unread_share:.1%} of the texts' tokens lie beyond {data.max_length} tokens and were not read "
            "(analysis.max_length)."
        )
    return [line if line.endswith(".") else f"{line[0].upper()}{line[1:]}." for line in said]


RUNS: dict[SaeRunName, str] = {
    "training": "the training",
    "warm_start": "the warm start",
    "crosscoder": "the crosscoders' training",
    "random_weights": "the training of the control",
}


def seen(report: Report) -> str:
    """Tokens that each autoencoder was trained on, repetitions counted."""
    runs, asked = report.sae_runs, report.request.analysis.sae
    return str(runs[0].steps * runs[0].batch if runs else asked.tokens if asked else 0)


def by_chance(report: Report, found: ChangedLatent) -> str:
    """How many of a layer's latents of this fate the floor would have given."""
    sae = report.layers[found.layer].sae
    if sae is None or sae.warm_start is None:
        return ""
    count, floor = getattr(sae.warm_start.tuned, found.fate), getattr(sae.warm_start.floor, found.fate)
    return f"one of {count} in this layer; training on alone gives {floor}"


def _quality(outputs: Outputs, model: ModelOutputs) -> str:
    if model.accuracy is not None and model.accuracy.value is not None:
        ends = model.accuracy.low, model.accuracy.high
        between = "" if None in ends else f" (95 %: {percent(ends[0])} to {percent(ends[1])})"
        return f"has an accuracy of {model.accuracy.value:.1%}{between} on {outputs.labelled or outputs.examples} texts"
    if model.perplexity is not None and model.perplexity.value is not None:
        return f"has a perplexity of {model.perplexity.value:.2f} over {outputs.examples} tokens"
    return "was not judged"


def _between(number: Measured, shape: str) -> str:
    if number.low is None or number.high is None:
        return ""
    return f" (95 %: {shape.format(number.low)} to {shape.format(number.high)})"


def limits(report: Report) -> list[str]:
    """What this report does not say."""
    said = []
    token = [layer.similarity["token"].cka for layer in report.layers]
    if all(number.low is None for number in token):
        said.append("No interval was computed: how much of a small drift is sampling noise is not known.")
    names = {null.name for null in report.nulls}
    if not names:
        said.append("No null was computed: drift is not compared with what chance gives.")
    elif names == {"numerical"}:
        said.append("Chance here means rounding alone; whether another seed would drift alike was not asked.")
    said.append("Drift shows where representations changed, not whether the change helps or harms the task.")
    return said


def chance(layer: Layer) -> float | None:
    """The largest null of a layer; None where there is none."""
    return max(layer.nulls.values(), default=None)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; an em dash where there is none."""
    return "—" if value is None else f"{value:.{digits}f}"


def interval(measured: Measured, digits: int = 3) -> str:
    """The 95 % interval of a number for a table; an em dash where there is none."""
    if measured.low is None or measured.high is None:
        return "—"
    return f"{measured.low:.{digits}f} to {measured.high:.{digits}f}"


def percent(share: float | None) -> str:
    """A share for a table; an em dash where there is none."""
    return "—" if share is None else f"{100 * share:.1f} %"


def _identical(report: Report) -> bool:
    return any(warning.code in ("identical_models", "identical_bodies") for warning in report.warnings)
