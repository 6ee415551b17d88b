"""The page of the paper's study: its claims, what holds, and what the controls add, from the report alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import vl_convert

from deploy.paper.claims import Judged, Mean, judged
from layerdrift.contract.study_report import StudyReport
from layerdrift.render import study_charts
from layerdrift.render.charts import Spec
from layerdrift.render.sentences import number
from layerdrift.render.study_sentences import mean_cosines, spans

SCALE = 1.5
"""Pixels for each of a chart's own."""

METHODS = {"full": "all weights", "lora": "LoRA", "head": "head alone", "checkpoint": "checkpoint"}


_INTRODUCTION = """
Written by `make paper-small` (or `make paper`); do not edit. S. Nadipalli, *Layer-Wise Evolution of Representations in
Fine-Tuned Transformers* (arXiv 2502.16722), says of fine-tuned transformers that early layers keep general
representations, middle layers change gradually, and late layers specialise. Here an encoder is fine-tuned on {count}
real tasks ({tasks}), with several seeds each, by training all weights and by LoRA, as a [study](studies.md).
"""
_READING = """
Drift is 1 − CKA of the tokens ([definitions](numbers.md)). Means are over seeds, with 95 % intervals of the t
distribution; with three seeds they are wide. *Early general*: in every seed the drift of all layers of the first
third is at most 0.1, with its interval. *Gradual*: in every seed drift falls nowhere in the middle third by more than
seeds explain, and no layer has more than half of the whole rise. *Late most*: the interval of the rise from the first
to the last third lies above what seeds explain (`reseeding`). A seed draws the training rows and the compared texts
too, and tasks are compared on texts of their own. Six or twelve blocks of one encoder on three tasks are one example,
not a law.
"""


def write(report: StudyReport, page: Path, images: Path, about: str) -> None:
    """Writes the page and its figures.

    Args:
        about: machine and date, and how long it took.
    """
    images.mkdir(parents=True, exist_ok=True)
    for name, spec in figures(report).items():
        image: bytes = vl_convert.vegalite_to_png(spec, scale=SCALE)
        (images / f"paper-{name}.png").write_bytes(image)
    page.write_text(text(report, about), encoding="utf-8")


def figures(report: StudyReport) -> dict[str, Spec]:
    """By name; those that the report has."""
    found = {
        "drift": study_charts.drift_curves(report),
        "general": study_charts.generality(report),
        "spread": study_charts.spread(report),
        "shared": study_charts.shared_changes(report),
        "tree": study_charts.tree(report),
    }
    return {name: spec for name, spec in found.items() if spec is not None}


def text(report: StudyReport, about: str) -> str:
    """The page as Markdown."""
    found = judged(report)
    shown = figures(report)
    failed = [member.name for member in report.members if member.layers is None]
    parts = [
        "# The paper, done again",
        _line(_INTRODUCTION).format(count=len(report.tasks), tasks=", ".join(report.tasks)),
        about,
        f"{len(failed)} members have no report: {', '.join(failed)}." if failed else "",
        "## What holds",
        _table(found),
        *_claims(found),
        _image("drift", shown, "Drift by layer and fine-tune"),
        "## What the controls add",
        *_controls(report),
        _image("general", shown, "Layers that are general for each task"),
        _image("spread", shown, "Spread of the drift over seeds and tasks"),
        _image("shared", shown, "Cosine of the changes of two fine-tunes"),
        _image("tree", shown, "Fine-tunes by how alike their changes are"),
        "## How to read this",
        _line(_READING),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _table(found: Sequence[Judged]) -> str:
    head = [
        "task",
        "trained",
        "seeds",
        "early drift",
        "late drift",
        "rise",
        "largest step",
        "early general",
        "gradual",
        "late most",
    ]
    rows = [head, ["---", "---", *["---:"] * 5, "---", "---", "---"]]
    rows += [
        [
            one.task,
            METHODS[one.method],
            str(one.seeds),
            _mean(one.early),
            _mean(one.late),
            _mean(one.rise),
            _mean(one.largest_step, 2),
            *("yes" if holds else "no" for holds in (one.early_general, one.gradual, one.late_most)),
        ]
        for one in found
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _mean(found: Mean, digits: int = 3) -> str:
    if math.isnan(found.low):
        return number(found.value, digits)
    return f"{number(found.value, digits)} ({number(found.low, digits)} to {number(found.high, digits)})"


def _claims(found: Sequence[Judged]) -> list[str]:
    """A sentence for each claim."""
    claims = (
        ("Early layers keep general representations", [one.early_general for one in found]),
        ("Middle layers change gradually", [one.gradual for one in found]),
        ("Late layers specialise", [one.late_most for one in found]),
    )
    return [f"**{claim}**: {_verdict(holds)}." for claim, holds in claims]


def _verdict(holds: Sequence[bool]) -> str:
    count, many = sum(holds), len(holds)
    if count == many:
        return f"holds for all {many} pairs of task and method"
    return (
        f"does not hold for any of the {many} pairs"
        if not count
        else f"holds for {count} of {many} pairs of task and method"
    )


def _controls(report: StudyReport) -> list[str]:
    general = spans([layer.index for layer in report.layers if layer.general == "all"])
    said = [f"Drift of at most 0.1, with its interval, for every task, method and seed: {general or 'no layer'}."]
    known = [layer for layer in report.layers if layer.reseeding is not None and layer.seed_sd.value is not None]
    if known:
        largest = max(known, key=lambda layer: layer.reseeding or 0.0)
        said.append(
            f"Seeds alone move the drift of a layer by up to {number(largest.reseeding)} (layer {largest.index}, in "
            f"95 % of "
            "cases): differences between two single fine-tunes below that say nothing."
        )
    apart = [layer.index for layer in report.layers if layer.task_p is not None and layer.task_p <= 0.05]
    if any(layer.task_p is not None for layer in report.layers):
        said.append(f"Tasks, with their texts, differ beyond seeds at {spans(apart) or 'no layer'} (F test, p ≤ 0.05).")
    said += _alike(report)
    return [" ".join(said)]


def _alike(report: StudyReport) -> list[str]:
    """How alike changes are within a task and across tasks, by layer."""
    found = report.similarity
    if found is None:
        return []
    told: list[str] = []
    for layer in (1, found.layers[-1].index):
        within, across = mean_cosines(report, found, layer)
        if within is not None and across is not None:
            told.append(f"{number(within, 2)} within a task and {number(across, 2)} across tasks at layer {layer}")
    return [f"Two fine-tunes change the same tokens with a mean cosine of {'; '.join(told)}."] if told else []


def _image(name: str, shown: dict[str, Spec], title: str) -> str:
    return f"![{title}](images/paper-{name}.png)" if name in shown else ""
