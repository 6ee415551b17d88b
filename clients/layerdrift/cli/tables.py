"""What commands print for people, on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from rich.console import Console
from rich.table import Table

from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.comparison import Comparison, Difference
from layerdrift.contract.estimate import Estimate
from layerdrift.contract.inspection import InspectedText, Inspection
from layerdrift.contract.key import ApiKey
from layerdrift.contract.policy import Check, Decision, Verdict
from layerdrift.contract.report import Layer, Report
from layerdrift.contract.usage import Usage
from layerdrift.render import sentences
from layerdrift.render.escaping import lines, terminal
from layerdrift.render.learned import probability, shown
from layerdrift.render.verdict import said as said_of

ZONE_STYLE = {"general": "blue", "transitional": "yellow", "specialised": "red", "ramp": "magenta"}
DECISION_STYLE: dict[Decision, str] = {"pass": "green", "warn": "yellow", "fail": "red"}

SAID = 3
"""Next tokens of each model that a table names."""

PLAIN_WIDTH = 160
"""Columns where standard output is no terminal, and so says nothing of its width."""


def say(*shown: Table | str) -> None:
    """Prints tables and lines."""
    console = Console(width=width(), highlight=False, soft_wrap=False)
    with _somebody_reads():
        for one in shown:
            if isinstance(one, str):
                console.print(lines(one), soft_wrap=True, markup=False)
            elif console.is_terminal:
                console.print(one)
            else:
                with console.capture() as capture:
                    console.print(one)
                sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def width() -> int:
    """Columns of standard output."""
    return Console().width if sys.stdout.isatty() else PLAIN_WIDTH


def put(text: str) -> None:
    """Prints a document as it is."""
    with _somebody_reads():
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def dump(value: Any) -> None:
    """Prints one JSON document."""
    if isinstance(value, BaseModel):
        put(value.model_dump_json(indent=1))
    else:
        put(TypeAdapter(Any).dump_json(value, indent=1).decode())


def line(value: Any) -> None:
    """Prints one JSON document on a line of its own."""
    put(TypeAdapter(Any).dump_json(value).decode())


@contextmanager
def _somebody_reads() -> Iterator[None]:
    """A reader who goes away early, as `head` does, changes nothing: least of all a gate's exit code."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def analyses(found: list[Analysis]) -> Table | str:
    """A line for each; a sentence where there is none."""
    if not found:
        return "No analyses. Submit one with: layerdrift submit --base … --tuned … --dataset …"
    table = plain("analysis", "name", "status", "verdict", "took", "created")
    for one in found:
        status = one.status.value
        if one.status is Status.RUNNING and one.progress.stage:
            status += f": {one.progress.stage} {one.progress.fraction:.0%}"
        took = (
            sentences.duration((one.finished_at - one.started_at).total_seconds())
            if one.finished_at and one.started_at
            else ""
        )
        decision = one.verdict or ""
        table.add_row(one.id, terminal(one.name), status, decision, took, f"{one.created_at:%Y-%m-%d %H:%M} UTC")
    return table


def analysis(one: Analysis) -> list[Table | str]:
    """What it is, in a line that is never broken, and its stages."""
    table = plain("stage", "status", "done", "took", "detail")
    for stage in one.progress.stages:
        took = ""
        if stage.started_at and stage.finished_at:
            took = sentences.duration((stage.finished_at - stage.started_at).total_seconds())
        detail = terminal(stage.detail) if stage.status == "running" else ""
        table.add_row(stage.name.value, stage.status, f"{stage.fraction:.0%}", took, detail)
    return [f"{one.id} {one.status}  {one.name}", table]


def estimate(found: Estimate) -> list[Table | str]:
    """Its stages, then the whole."""
    table = plain("stage", "about")
    for stage in found.stages:
        table.add_row(stage.stage.value, sentences.duration(stage.seconds))
    basis = {
        "measured": "from the last jobs of these workers",
        "reference": "no job has finished here yet; rates of a machine with 2 cores",
    }[found.basis]
    queue = f" {found.queued_before} queued analyses come first." if found.queued_before else ""
    return [
        table,
        f"About {sentences.duration(found.seconds)} in all, the first drift curve after "
        f"{sentences.duration(found.first_curve_seconds)} ({basis}).{queue}",
        f"Memory of the worker: about {found.memory_bytes / 2**30:.1f} GiB. Scratch on its disk: about "
        f"{found.scratch_bytes / 2**30:.1f} GiB. Files to fetch: {found.download_bytes / 2**20:.0f} MiB.",
    ]


def layers(report: Report, width: int = PLAIN_WIDTH) -> Table:
    """The numbers that say most, layer by layer: only those that are known, and as many as fit the width."""
    columns: dict[str, Sequence[str | None]] = {
        heading: [value(layer) for layer in report.layers] for heading, value in _LAYER_NUMBERS.items()
    }
    known = [name for name, cells in columns.items() if any(cell is not None for cell in cells)]
    if width < _ALL_COLUMNS and len(known) > _FITTING:
        known.remove("resolution")
    table = Table(title="drift by layer (token view)", title_justify="left", box=None, pad_edge=False)
    table.collapse_padding = width < _ALL_COLUMNS
    for heading in ("layer", "zone"):
        table.add_column(heading, no_wrap=True)
    graft = report.causal.graft
    unit = (
        f"graft ({graft.measure.replace('_', ' ')})" if graft is not None and graft.measure != "accuracy" else "graft"
    )
    for heading in known:
        table.add_column(unit if heading == "graft" else heading, justify="right")
    for place, layer in enumerate(report.layers):
        style = ZONE_STYLE[layer.zone]
        cells = [columns[heading][place] or sentences.number(None) for heading in known]
        table.add_row(f"{layer.index} {layer.name}", f"[{style}]{layer.zone}[/{style}]", *cells)
    return table


def verdict(found: Verdict) -> Table:
    """A line for each check, and the decision above."""
    return checks(found.decision, said_of(found), found.checks)


def checks(decision: Decision, said_of_it: str, found: Sequence[Check]) -> Table:
    """A line for each check, and the decision above with what it means."""
    style = DECISION_STYLE[decision]
    table = plain("", "check", "result", title=f"[bold {style}]{decision.upper()}[/bold {style}] {said_of_it}")
    for check in found:
        colour = DECISION_STYLE[check.decision]
        said = [check.detail] if check.decision == "pass" else [check.said, check.detail]
        table.add_row(
            f"[{colour}]{check.shown}[/{colour}]" if check.shown != "skip" else "[dim]skip[/dim]",
            terminal(check.id),
            "\n".join(terminal(line) for line in said),
        )
    return table


def comparison(found: Comparison) -> Table:
    """Both reports, and what lies between, layer by layer."""
    unlike = [
        what
        for what, same in (
            ("base", found.same_base),
            ("data", found.same_dataset),
            (f"settings: {', '.join(found.unlike_settings)}", found.same_settings),
        )
        if not same
    ]
    title = f"{found.one} → {found.other}" + (f"  (other {', '.join(unlike)})" if unlike else "")
    table = plain("layer", "zones", "drift", "difference", "relative L2", "difference", "graft", title=title)
    for layer in found.layers:
        table.add_row(
            f"{layer.index} {layer.name}",
            " → ".join(dict.fromkeys(layer.zones)),
            _both(layer.drift),
            _signed(layer.drift.difference),
            _both(layer.relative_l2),
            _signed(layer.relative_l2.difference),
            _both(layer.graft),
        )
    return table


def inspection(found: Inspection) -> list[Table | str]:
    """For each text its tokens and their drift, a column for each layer; of language models what they say next."""
    tables = list[Table | str]()
    for text in found.texts:
        title = f"{terminal(text.text)}\n[dim]drift of each token (0: none) by layer[/dim]"
        table = plain("token", *(str(index) for index in range(len(text.layers))), title=title)
        for place, token in enumerate(text.tokens):
            drift = [layer.drift[place] for layer in text.layers]
            table.add_row(terminal(token), *("" if value is None else f"{value:.3f}" for value in drift))
        tables.append(table)
        if text.next_tokens is not None:
            tables.append(_next_tokens(text))
        if text.completions is not None:
            tables.append(f"continuation, base model:  {_in_one_line(text.completions.base)}")
            tables.append(f"continuation, tuned model: {_in_one_line(text.completions.tuned)}")
    return tables


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _next_tokens(text: InspectedText) -> Table:
    """The likeliest next tokens of both models after each token."""
    table = plain("after", "divergence, bits", "base model says next", "tuned model says next")
    for token, following in zip(text.tokens, text.next_tokens or (), strict=True):
        said = [
            ", ".join(f"{shown(one.token)} {probability(one.probability)}" for one in side[:SAID])
            for side in (following.base, following.tuned)
        ]
        table.add_row(terminal(token), f"{following.divergence:.2f}", *(terminal(one) for one in said))
    return table


def keys(found: Sequence[ApiKey]) -> Table | str:
    """A line for each; a sentence where there is none."""
    if not found:
        return "No API keys: the service asks for none. Create one with: layerdrift keys create"
    table = plain("key", "name", "scopes", "requests a minute", "open jobs", "priority", "created")
    for key in found:
        numbers = (str(key.requests_per_minute), str(key.open_jobs), str(key.priority))
        table.add_row(key.id, terminal(key.name), ", ".join(sorted(key.scopes)), *numbers, f"{key.created_at:%Y-%m-%d}")
    return table


def usage(found: Usage) -> Table:
    """A line for each thing that a quota may be of."""
    table = plain("", "used", "quota", "frees")
    month = f"{found.resets_at:%Y-%m-%d %H:%M} UTC"
    for name, used, allowed, frees in (
        ("GPU seconds", found.gpu_seconds, found.quota.gpu_seconds, month),
        ("CPU seconds", found.cpu_seconds, found.quota.cpu_seconds, month),
        ("stored bytes", found.storage_bytes, found.quota.storage_bytes, "when something is deleted"),
        ("open jobs", found.open_jobs, found.quota.open_jobs, "when one ends"),
    ):
        limited = allowed is not None
        shown = "none found yet" if used is None else f"{used:,.0f}"
        table.add_row(name, shown, f"{allowed:,.0f}" if allowed is not None else "none", frees if limited else "")
    return table


def plain(*headings: str, title: str | None = None) -> Table:
    """A table without lines, whose cells are folded where they are too long."""
    table = Table(*headings, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    return table


def _both(found: Difference) -> str:
    if found.incomparable is not None:
        return f"{sentences.number(found.one)} | {sentences.number(found.other)} ({found.incomparable})"
    return f"{sentences.number(found.one)} → {sentences.number(found.other)}"


def _signed(value: float | None) -> str:
    return "—" if value is None else f"{round(value, 3) + 0.0:+.3f}"


def _resolution(layer: Layer) -> float | None:
    """CKA that rounding alone leaves; None where it is not known."""
    drift = sentences.resolution(layer)
    return None if drift is None else 1 - drift


def _shown(value: float | None, digits: int = 3) -> str | None:
    return None if value is None else sentences.number(value, digits)


_LAYER_NUMBERS: Final[Mapping[str, Callable[[Layer], str | None]]] = {
    "CKA": lambda layer: _shown(layer.similarity["token"].cka.value, 4),
    "resolution": lambda layer: _shown(_resolution(layer), 5),
    "of scale": lambda layer: (
        None if layer.relative_drift.value is None else sentences.percent(layer.relative_drift.value)
    ),
    "relative L2": lambda layer: _shown(layer.similarity["token"].relative_l2.value),
    "graft": lambda layer: _shown(layer.graft.prefix.value) if layer.graft else None,
    "probe": lambda layer: _shown(layer.probe.tuned.value) if layer.probe else None,
    "FVU base": lambda layer: _shown(layer.sae.base.fvu) if layer.sae else None,
    "transfer": lambda layer: _shown(layer.sae.transfer_excess) if layer.sae else None,
}
_ALL_COLUMNS, _FITTING = 104, 5
"""Columns of text that all numbers need, and how many of the numbers fit 80 of them."""
