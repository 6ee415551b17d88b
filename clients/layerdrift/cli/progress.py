"""How far things have come, on standard error: bars for a terminal, a line for each stage elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.plain import visible
from layerdrift.sdk import AnalysisFailed, Client
from layerdrift.sdk.files import Heard

console = Console(stderr=True)


def follow(client: Client, analysis_id: str, timeout: float | None) -> Analysis:
    """Shows an analysis until it has ended; its last state.

    Raises:
        AnalysisFailed: it has no report.
        TimeoutError: it has not ended after `timeout` seconds.
    """
    show = _bars if console.is_terminal else _lines
    try:
        last = show(client, analysis_id, timeout)
    except KeyboardInterrupt:
        console.print(
            f"no longer watching; {analysis_id} goes on: layerdrift watch {analysis_id}, or cancel it with "
            f"layerdrift cancel {analysis_id}",
            highlight=False,
            soft_wrap=True,
        )
        raise
    if last.status is not Status.SUCCEEDED:
        raise AnalysisFailed(last)
    return last


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
        for last in client.watch(analysis_id, timeout):
            for stage in last.progress.stages:
                if stage.name not in tasks:
                    tasks[stage.name] = bars.add_task(stage.name.value, total=1.0, start=False, detail="")
                if stage.status != "pending" and not bars.tasks[tasks[stage.name]].started:
                    bars.start_task(tasks[stage.name])
                bars.update(tasks[stage.name], completed=stage.fraction, detail=visible(stage.detail))
    return last


def _lines(client: Client, analysis_id: str, timeout: float | None) -> Analysis:
    said: set[tuple[str, str]] = set()
    for last in client.watch(analysis_id, timeout):
        for stage in last.progress.stages:
            if stage.status != "pending" and (stage.name, stage.status) not in said:
                said.add((stage.name, stage.status))
                took = ""
                if stage.started_at and stage.finished_at:
                    took = f" ({(stage.finished_at - stage.started_at).total_seconds():.1f} s)"
                console.print(f"{stage.name} {stage.status}{took}", highlight=False)
    return last


@contextmanager
def uploading(name: str) -> Iterator[Heard]:
    """Shows an upload, once its bytes go."""
    with Progress(
        TextColumn("uploading {task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(visible(name), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
