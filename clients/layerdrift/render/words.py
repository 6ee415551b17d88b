"""A report in plain sentences, the same in HTML and Markdown. Says no more than the numbers do."""

from __future__ import annotations

from layerdrift.contract.report import Measured, Report, Zone

ZONE_MEANING = {
    "general": "kept the base model's representations",
    "transitional": "changed in part",
    "specialised": "changed most",
}


def headline(report: Report) -> str:
    """The finding in one sentence."""
    if _identical(report):
        return "Below their heads the two models are identical on these texts: no layer drifted at all."
    first, last = report.layers[0], report.layers[-1]
    return (
        f"Drift (1 - CKA) goes from {first.drift:.3f} at the {first.name} to {last.drift:.3f} at {last.name}: "
        + "; ".join(f"{span(zone)} {ZONE_MEANING[zone.name]}" for zone in report.zones)
        + "."
    )


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
    if recommendation.freeze_first == 0:
        return f"Freeze nothing ({recommendation.basis}). {recommendation.evidence}"
    return (
        f"Freeze the embeddings and the first {recommendation.freeze_first} blocks next time "
        f"({recommendation.basis}). {recommendation.evidence}"
    )


def outcome(report: Report) -> str | None:
    """What the fine-tune reached; None for a pair."""
    outputs = report.outputs
    if outputs is None:
        return None
    return (
        f"After {outputs.steps} steps the fine-tune labels {outputs.accuracy:.1%} of {outputs.examples} texts it was "
        f"not trained on rightly; always saying the commonest label would give {outputs.majority_accuracy:.1%}."
    )


def limits(report: Report) -> list[str]:
    """What this report does not say."""
    said = []
    token = [layer.similarity["token"].cka for layer in report.layers]
    if all(number.low is None for number in token):
        said.append("No interval was computed: how much of a small drift is sampling noise is not known.")
    if all(number.null is None for number in token):
        said.append("No null was computed: drift is not compared with that of a retraining by chance.")
    said.append("Drift shows where representations changed, not whether the change helps or harms the task.")
    return said


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
