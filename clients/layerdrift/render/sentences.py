"""A report in plain sentences, the same in HTML and Markdown. Says no more than the numbers do."""

from __future__ import annotations

from layerdrift.contract.names import MUCH_MOVED, RoleName, SaeRunName
from layerdrift.contract.report import (
    AnswerOutputs,
    ChangedLatent,
    ChoiceOutputs,
    Layer,
    Measured,
    ModelOutputs,
    Outputs,
    PreferenceOutputs,
    Report,
    Zone,
)

ZONE_MEANING = {
    "general": "close to the base model",
    "transitional": "partly changed",
    "specialised": "changed most",
    "ramp": "changed more with every layer",
}

STRATEGIES = {
    "recommended": "as many blocks as grafts or drift predict",
    "nothing": "freeze nothing",
    "half": "freeze half",
    "gradient_norm": "as many blocks, smallest gradient norm",
}


def headline(report: Report) -> str:
    """The finding in one sentence."""
    if _identical(report):
        return "The models are identical at every layer on these texts: nothing drifted."
    if any(warning.code == "answers_not_explained" for warning in report.warnings):
        most = max(layer.drift for layer in report.layers)
        return f"Drift (1 - CKA) is at most {most:z.3f} at every layer, which does not explain the changed outputs."
    first, last = report.layers[0], report.layers[-1]
    return (
        f"Drift (1 - CKA) goes from {first.drift:z.3f} at the {first.name} to {last.drift:z.3f} at {last.name}: "
        + "; ".join(f"{span(zone)} {ZONE_MEANING[zone.name]}" for zone in joined(report.zones))
        + f".{_beyond_cka(report)}"
    )


def _beyond_cka(report: Report) -> str:
    """Layers of little drift whose activations still moved by half of their own variation: in what CKA ignores."""
    moved = [
        str(layer.index)
        for layer in report.layers
        if layer.zone == "general" and (layer.similarity["token"].relative_l2_centred.value or 0.0) > MUCH_MOVED
    ]
    if not moved:
        return ""
    which = f"layer {moved[0]}" if len(moved) == 1 else f"layers {', '.join(moved)}"
    return (
        f" At {which} the activations still moved by more than half of their own variation, in scale or along few "
        "directions, which CKA ignores."
    )


STAGE_PARTS = {
    "learned": "what a language model learned",
    "sae": "sparse autoencoders and their features",
    "causal": "what the change means for the outputs, and advice on freezing",
}


def pending(report: Report) -> str | None:
    """What a preliminary report lacks, and about how long it takes; None for a complete one."""
    if report.status == "complete":
        return None
    parts = []
    for stage in report.pending:
        about = f" (about {duration(stage.expected_seconds)})" if stage.expected_seconds is not None else ""
        parts.append(STAGE_PARTS.get(stage.stage, stage.stage) + about)
    return f"Preliminary report: the analysis is still running. Still to come: {'; '.join(parts)}."


def duration(seconds: float) -> str:
    """A time for people: 40 s, 2 min 40 s, 12 min, 2 h 10 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 595:
        tens = round(seconds / 10)
        return f"{tens // 6} min" + (f" {tens % 6 * 10} s" if tens % 6 else "")
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def joined(zones: list[Zone]) -> list[Zone]:
    """Neighbours of one name as one: an unmoved bottom and a layer above it that hardly moved read alike."""
    found: list[Zone] = []
    for zone in zones:
        if found and found[-1].name == zone.name:
            found[-1] = found[-1].model_copy(update={"last": zone.last})
        else:
            found.append(zone)
    return found


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
    """How well the models do on the task; None where that could not be evaluated."""
    outputs = report.outputs
    if outputs is None or outputs.tuned is None:
        return None
    who = f"Fine-tune after {report.finetune.kept_step} steps" if report.finetune is not None else "Tuned model"
    said = [f"{who}: {_quality(outputs, outputs.tuned)}"]
    if outputs.majority_accuracy is not None:
        said[0] += f" (majority class {percent(outputs.majority_accuracy)})"
    if report.finetune is None and outputs.base is not None:
        said.append(f"Base model: {_quality(outputs, outputs.base)}")
    if outputs.accuracy_change is not None and outputs.accuracy_change.value is not None:
        test = f" (McNemar's test: p = {outputs.mcnemar_p:.2g})" if outputs.mcnemar_p is not None else ""
        said.append(f"Change on the same texts: {_points(outputs.accuracy_change)} points{test}")
    ratio = outputs.perplexity_ratio
    if ratio is not None and ratio.value is not None:
        said.append(
            f"Perplexity of the tuned model: {ratio.value:.3g} times the base model's{_between(ratio, '{:.3g}')}"
        )
    if outputs.disagreement is not None and outputs.disagreement.value is not None:
        said.append(f"The two models disagree on {percent(outputs.disagreement.value)} of {outputs.examples} outputs")
    return ". ".join(said) + "."


WHOSE: dict[RoleName, str] = {
    "assistant": "the assistant's",
    "user": "the user's",
    "system": "the system prompt's",
    "tool": "the tools'",
    "template": "the template's",
}
"""Tokens of chats by role, the one that is asked for most first."""


def roles(report: Report) -> str | None:
    """Drift by role where all tokens drift most; None for texts that are no chats."""
    layer = max(report.layers, key=lambda one: one.drift)
    said = []
    for role, whose in WHOSE.items():
        view = layer.similarity.get(role)
        if view is None or view.cka.value is None:
            continue
        drift, ends = 1 - view.cka.value, (view.cka.low, view.cka.high)
        between = "" if None in ends else f" (95 %: {1 - (ends[1] or 0.0):z.3f} to {1 - (ends[0] or 0.0):z.3f})"
        said.append(f"{drift:z.3f}{between} over {whose} {report.dataset.role_tokens.get(role, 0)} tokens")
    return f"By role, drift at layer {layer.index} is {', '.join(said)}." if said else None


def answers(report: Report) -> str | None:
    """How both models do on answers, preferences and choices; None where the data have none."""
    outputs = report.outputs
    if outputs is None:
        return None
    said = [*_answers(outputs.answers), *_preferences(outputs.preferences), *_choices(outputs.choices)]
    return " ".join(f"{line}." for line in said) or None


def _answers(found: AnswerOutputs | None) -> list[str]:
    if found is None:
        return []
    tuned, base = found.tuned, found.base
    said = f"On the {found.tokens} tokens of {found.texts} answers the tuned model's perplexity is "
    said += number(tuned.perplexity.value, 2)
    if base is not None and found.perplexity_ratio is not None and found.perplexity_ratio.value is not None:
        said += f", {found.perplexity_ratio.value:.3g} times the base model's ({number(base.perplexity.value, 2)})"
        said += _between(found.perplexity_ratio, "{:.3g}")
    told = [said]
    if tuned.end_probability is not None:
        ends = f"Where an answer ends, it gives the end token a probability of {number(tuned.end_probability.value, 2)}"
        if base is not None and base.end_probability is not None:
            ends += f" (base model {number(base.end_probability.value, 2)})"
        told.append(ends)
    return told


def _preferences(found: PreferenceOutputs | None) -> list[str]:
    if found is None:
        return []
    said = f"It finds the chosen answer likelier in {percent(found.tuned_accuracy.value)} of {found.pairs} pairs"
    if found.base_accuracy is not None:
        said += f" (base model {percent(found.base_accuracy.value)})"
    if found.reward_accuracy is not None and found.reward_margin is not None:
        said += (
            f"; the chosen answer gained more in {percent(found.reward_accuracy.value)}, by a reward margin of "
            f"{number(found.reward_margin.value)}{_between(found.reward_margin, '{:.3f}')}"
        )
    return [said]


def _choices(found: ChoiceOutputs | None) -> list[str]:
    if found is None:
        return []
    said = (
        f"It chooses right in {percent(found.tuned.accuracy.value)} of {found.questions} questions (guessing "
        f"{percent(found.chance)}"
    )
    said += f", base model {percent(found.base.accuracy.value)})" if found.base is not None else ")"
    if found.accuracy_change is not None and found.accuracy_change.value is not None:
        said += f", a change of {_points(found.accuracy_change)} points"
    if found.mcnemar_p is not None:
        said += f" (McNemar's test: p = {found.mcnemar_p:.2g})"
    if found.changed is not None:
        said += f"; {percent(found.changed.value)} of its answers changed"
    return [said]


def withheld(report: Report) -> str | None:
    """That the autoencoders of some layers tell nothing of single features; None where all do, or none were trained."""
    layers = [layer for layer in report.layers if layer.sae is not None and layer.sae.withheld is not None]
    if not layers:
        return None
    return (
        f"Changed features are not reported at {len(layers)} of {len(report.layers)} layers: too few latents of an "
        "autoencoder reappear with another seed. More tokens (analysis.sae.tokens, 500,000 or more) help."
    )


def latent(found: ChangedLatent) -> str:
    """What is known of a changed latent."""
    said = (
        f"Fires on {found.base_rate:.2%} of the tokens in the base model and on {found.tuned_rate:.2%} in the tuned one"
    )
    said += f"; cosine of its directions there {found.cosine:.2f}."
    lean = found.label_association
    if lean is not None:
        said += (
            f" {lean.share:.0%} of its activation is on texts labelled “{lean.label}”, which hold "
            f"{lean.expected:.0%} of the tokens."
        )
    if found.roles:
        role = max(found.roles, key=lambda one: found.roles[one].share)
        most = found.roles[role]
        said += f" {most.share:.0%} of its activation is on {WHOSE[role]} tokens, {most.expected:.0%} of all."
    if found.promotes:
        said += f" Read with the output embeddings, its direction promotes {', '.join(map(repr, found.promotes))}."
    if found.probe is not None:
        said += (
            f" Among the labels, its direction points most to “{found.probe.label}” (cosine {found.probe.cosine:.2f})."
        )
    return said


UNREAD_SHOWN = 0.01
"""Beyond this share of tokens that were not read, the first screen says so."""

FIRST_SCREEN = (
    "answers_worse",
    "never_stops",
    "drift_of_other_roles",
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
    if data.truncated_share is not None and data.truncated_share > UNREAD_SHOWN:
        said.append(
            f"{data.truncated_share:.1%} of the texts' tokens lie beyond {data.max_length} tokens and were not read "
            "(analysis.max_length)."
        )
    return [f"{line[0].upper()}{line[1:].removesuffix('.')}." for line in said]


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
    return f"one of {count} in this layer; floor {floor}"


def _quality(outputs: Outputs, model: ModelOutputs) -> str:
    if model.accuracy is not None and model.accuracy.value is not None:
        ends = model.accuracy.low, model.accuracy.high
        between = "" if None in ends else f" (95 %: {percent(ends[0])} to {percent(ends[1])})"
        return f"accuracy {percent(model.accuracy.value)}{between} on {outputs.labelled or outputs.examples} texts"
    if model.perplexity is not None and model.perplexity.value is not None:
        return f"perplexity {model.perplexity.value:.2f} over {outputs.examples} tokens"
    return "not evaluated"


def _between(number: Measured, shape: str) -> str:
    if number.low is None or number.high is None:
        return ""
    return f" (95 %: {shape.format(number.low)} to {shape.format(number.high)})"


def limits(report: Report) -> list[str]:
    """What this report does not say."""
    said = []
    token = [layer.similarity["token"].cka for layer in report.layers]
    if all(number.low is None for number in token):
        said.append("No intervals were computed, so sampling noise is not known.")
    names = {null.name for null in report.noise_floors}
    if "numerical" not in names:
        said.append("The numerical resolution is not known: a small drift may be rounding.")
    if "reseed" not in names:
        said.append("Whether another seed would make the same change was not measured (analysis.noise_floors: reseed).")
    if report.reference is None and report.finetune is None:
        said.append(
            "Whether the tuned model was trained on these texts is not known, and forgetting on other texts was not "
            "measured (dataset.reference)."
        )
    said.append("Drift shows where representations changed, not whether the change helps or harms the task.")
    return said


def reference(report: Report) -> str | None:
    """What became of the models on the general texts; None without them."""
    found = report.reference
    if found is None:
        return None
    said = f"On {found.texts} reference texts, which are not among the analysed ones, "
    known = [layer for layer, drift in enumerate(found.drift) if drift.value is not None]
    if known:
        most = max(known, key=lambda layer: found.drift[layer].value or 0.0)
        drift = found.drift[most]
        said += f"drift is largest at layer {most}: {number(drift.value)}{_between(drift, '{:.3f}')}"
    else:
        said += "drift is undefined at every layer"
    ratio = found.outputs.perplexity_ratio if found.outputs else None
    change = found.outputs.accuracy_change if found.outputs else None
    if ratio is not None and ratio.value is not None:
        said += f"; the tuned model's perplexity there is {ratio.value:.3g} times the base model's"
        said += _between(ratio, "{:.3g}")
    if change is not None and change.value is not None:
        said += f"; its accuracy there changes by {_points(change)} points"
    return f"{said}."


def _points(change: Measured) -> str:
    """A change of a share in points, signed, with its interval."""
    said = f"{100 * (change.value or 0.0):+.1f}"
    if change.low is None or change.high is None:
        return said
    return f"{said} (95 %: {100 * change.low:+.1f} to {100 * change.high:+.1f})"


def resolution(layer: Layer) -> float | None:
    """The drift that rounding alone gives at a layer; None where it is not known."""
    return layer.noise_floors.get("numerical")


def excess(count: int | None, error: float | None) -> str:
    """A difference of counts with its error, signed, for a table."""
    return "—" if count is None else f"{count:+d} ± {error or 0.0:.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; an em dash where there is none."""
    return "—" if value is None else f"{value:z.{digits}f}"


def interval(measured: Measured, digits: int = 3) -> str:
    """The 95 % interval of a number for a table; an em dash where there is none."""
    if measured.low is None or measured.high is None:
        return "—"
    return f"{measured.low:z.{digits}f} to {measured.high:z.{digits}f}"


def percent(share: float | None) -> str:
    """A share for a table; an em dash where there is none."""
    return "—" if share is None else f"{100 * share:z.1f} %"


def _identical(report: Report) -> bool:
    return any(warning.code in ("identical_models", "identical_bodies") for warning in report.warnings)
