"""Progress on standard error: bars on a terminal, lines elsewhere; and the first numbers as soon as they are known."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from layerdrift.cli import tables
from layerdrift.contract.analysis import Analysis, Stage, Status
from layerdrift.contract.errors import LayerdriftError
from layerdrift.contract.plain import visible
from layerdrift.render import sentences
from layerdrift.sdk import AnalysisFailed, Client
from layerdrift.sdk.files import Heard

LINE_SECONDS = 15.0
"""Without a terminal, a stage that still runs says so this often."""

console = Console(stderr=True, width=None if sys.stderr.isatty() else tables.PLAIN_WIDTH)


def said_on_retry(reason: str) -> None:
    """Says why nothing happens: the service is called again."""
    console.print(reason, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Shows what is waited for, where that takes a while."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what, highlight=False)
        yield


def waiting(analysis: Analysis) -> str:
    """Why a queued analysis has not started."""
    before = analysis.queued_before or 0
    if not before:
        return "queued: next in line, waiting for a free worker"
    return f"queued: {before} {'analysis' if before == 1 else 'analyses'} ahead"


def follow(client: Client, analysis_id: str, timeout: float | None) -> Analysis:
    """Shows an analysis until it has ended; its last state.

    Raises:
        AnalysisFailed: it has no report.
        TimeoutError: it has not ended after `timeout` seconds.
    """
    show = _bars if console.is_terminal else _lines
    with told_to_keep_running(analysis_id, "layerdrift"):
        last = show(client, analysis_id, timeout)
    if last.status is not Status.SUCCEEDED:
        raise AnalysisFailed(last)
    return last


@contextmanager
def told_to_keep_running(id_: str, command: str) -> Iterator[None]:
    """On Ctrl-C says that what is watched goes on, and how to follow and cancel it: `<command> watch <id>`."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"stopped watching; {id_} keeps running. Follow it with {command} watch {id_}, or cancel it with {command} "
            f"cancel {id_}",
            highlight=False,
            soft_wrap=True,
        )
        raise


class _FirstNumbers:
    """Prints the table of layers once, when the preliminary report is there."""

    def __init__(self, client: Client, out: Console) -> None:
        self._client = client
        self._out = out
        self._shown = False

    def look(self, analysis: Analysis) -> None:
        if self._shown or analysis.report != "preliminary":
            return
        self._shown = True
        try:
            report = self._client.report(analysis.id, preliminary=True)
        except LayerdriftError:  # it has ended meanwhile, and the whole report follows
            return
        if report.status == "preliminary":
            self._out.print(tables.layers(report, self._out.width))
            self._out.print(sentences.pending(report) or "", highlight=False, soft_wrap=True, markup=False)


def _bars(client: Client, analysis_id: str, timeout: float | None) -> Analysis:
    columns = (
        TextColumn("{task.description:<9}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:
        first = _FirstNumbers(client, bars.console)
        queue = bars.add_task("queued", total=1.0, detail="", visible=False)
        for last in client.watch(analysis_id, timeout):
            bars.update(queue, visible=last.status is Status.QUEUED, detail=waiting(last))
            for stage in last.progress.stages:
                if stage.name not in tasks:
                    tasks[stage.name] = bars.add_task(stage.name.value, total=1.0, start=False, detail="")
                if stage.status != "pending" and not bars.tasks[tasks[stage.name]].started:
                    bars.start_task(tasks[stage.name])
                bars.update(tasks[stage.name], completed=stage.fraction, detail=_detail(last, stage))
            first.look(last)
    return last


def _lines(client: Client, analysis_id: str, timeout: float | None) -> Analysis:
    said: set[tuple[str, str]] = set()
    first, at = _FirstNumbers(client, console), time.monotonic()

    def put(line: str) -> None:
        nonlocal at
        at = time.monotonic()
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    for last in client.watch(analysis_id, timeout):
        for stage in last.progress.stages:
            if stage.status != "pending" and (stage.name, stage.status) not in said:
                said.add((stage.name, stage.status))
                put(f"{stage.name} {stage.status}{_took(stage)}")
            elif stage.status == "running" and time.monotonic() - at > LINE_SECONDS:
                put(f"{stage.name} {stage.fraction:.0%} {_detail(last, stage)}".rstrip())
        if last.status is Status.QUEUED and (not said or time.monotonic() - at > LINE_SECONDS):
            said.add(("", "queued"))
            put(waiting(last))
        first.look(last)
    return last


def _detail(analysis: Analysis, stage: Stage) -> str:
    """What a running stage does and how long the analysis still takes."""
    if stage.status != "running":
        return ""
    left = analysis.progress.seconds_left
    return ", ".join(
        part
        for part in (visible(stage.detail), f"about {sentences.duration(left)} left" if left is not None else "")
        if part
    )


def _took(stage: Stage) -> str:
    if stage.started_at is None or stage.finished_at is None:
        return ""
    return f" ({(stage.finished_at - stage.started_at).total_seconds():.1f} s)"


@contextmanager
def uploading(name: str) -> Iterator[Heard]:
    """Shows an upload once its bytes are sent."""
    with Progress(
        TextColumn("uploading {task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(visible(name), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
