"""`layerdrift study`: many fine-tunes of one base, compared with it and with one another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from layerdrift.cli import exits, study_tables, tables
from layerdrift.cli.exits import reported
from layerdrift.cli.inputs import problem_at, read_request, with_uploads
from layerdrift.cli.options import AsJson, Url
from layerdrift.cli.outputs import require_folder, whole
from layerdrift.cli.progress import LINE_SECONDS, console, said_on_retry, told_to_keep_running, waiting_for
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError
from layerdrift.contract.explained import explain
from layerdrift.contract.study import Study, StudyRequest
from layerdrift.contract.study_policy import StudyPolicy
from layerdrift.render import study_sentences
from layerdrift.sdk import Client, StudyFailed
from layerdrift.sdk.calls import ReportFormat

study_app = typer.Typer(help="Compare many fine-tunes of one base model.", no_args_is_help=True, rich_markup_mode=None)

StudyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The study as YAML or JSON; see docs/studies.md.")]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study: its id, the first characters of it, its name, or `latest`.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0,
        show_default="none",
        help="Stop waiting after this many seconds (exit code 4). The study keeps running.",
    ),
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report as an HTML page.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the report as Markdown.")]
ReportJson = Annotated[Path | None, typer.Option("--report", help="Write the report as JSON.")]
StudyPolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", "-p", help="Rules over the report of the study, YAML or JSON: exit code 1 if one fails."),
]


@study_app.command()
@reported
def run(
    file: StudyFile,
    policy: StudyPolicyFile = None,
    html: Html = None,
    markdown: Markdown = None,
    report: ReportJson = None,
    timeout: Timeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit a study, show its progress, and print its report. Local files and folders are uploaded."""
    asked = _policy(policy)
    targets = _targets(html, markdown, report)
    with Client(url, on_retry=said_on_retry) as client:
        study = _submitted(file, client)
        console.print(f"{study.id} {study.status}: {study.name}", highlight=False, markup=False)
        followed(client, study.id, timeout)
        _conclude(client, study.id, targets, asked, as_json)


@study_app.command()
@reported
def submit(file: StudyFile, url: Url = None, as_json: AsJson = False) -> None:
    """Submit a study and print its id. Local files and folders are uploaded."""
    with Client(url, on_retry=said_on_retry) as client:
        study = _submitted(file, client)
    if as_json:
        tables.dump(study)
    else:
        tables.put(study.id)


@study_app.command()
@reported
def watch(study: StudyArgument, timeout: Timeout = None, url: Url = None) -> None:
    """Show the progress of a study until it ends."""
    with Client(url, on_retry=said_on_retry) as client:
        followed(client, study, timeout)
        tables.say(study_sentences.headline(client.study_report(study)))


@study_app.command()
@reported
def status(study: StudyArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Show a study and its members."""
    with Client(url, on_retry=said_on_retry) as client:
        found = client.get_study(study)
    if as_json:
        tables.dump(found)
    else:
        tables.say(f"{found.id} {found.status}: {found.name}", study_tables.states(found))
        if found.error is not None:
            tables.say(f"{found.error.title}: {found.error.detail}")


@study_app.command("list")
@reported
def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="Number of studies, newest first.")] = 20,
    name: Annotated[str | None, typer.Option("--name", help="Filter by part of the name.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Filter by tag: key=value.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List studies."""
    if tag is not None and not all(tag.partition("=")):
        raise InputError(f"--tag {tag}: write key=value")
    with Client(url, on_retry=said_on_retry) as client:
        found = client.list_studies(limit, None, name, tag and tag.replace("=", ":", 1)).items
    if as_json:
        tables.dump([one.model_dump(mode="json") for one in found])
    else:
        tables.say(study_tables.studies(found))


@study_app.command("report")
@reported
def report_(
    study: StudyArgument,
    policy: StudyPolicyFile = None,
    html: Html = None,
    markdown: Markdown = None,
    report: ReportJson = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print or save the report of a study, and evaluate a policy on it."""
    asked = _policy(policy)
    targets = _targets(html, markdown, report)
    with Client(url, on_retry=said_on_retry) as client:
        _conclude(client, client.get_study(study).id, targets, asked, as_json)


@study_app.command()
@reported
def cancel(study: StudyArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel a study, and the analyses that it made and no other open study needs."""
    with Client(url, on_retry=said_on_retry) as client:
        found = client.cancel_study(study)
    if as_json:
        tables.dump(found)
    else:
        tables.put(f"{found.id} {found.status if found.status.final else 'is stopping'}")


@study_app.command()
@reported
def delete(study: StudyArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Delete a finished study and its report; the analyses of its members stay."""
    with Client(url, on_retry=said_on_retry) as client:
        client.delete_study(study)
    if as_json:
        tables.dump({"id": study, "deleted": True})


_Targets = list[tuple[Path, ReportFormat | None]]
"""Files that are written, and as what; None: JSON."""


def _targets(html: Path | None, markdown: Path | None, report: Path | None) -> _Targets:
    """Where the report is written; FileNotFoundError, before any work, where a folder does not exist."""
    given: list[tuple[Path | None, ReportFormat | None]] = [(html, "html"), (markdown, "md"), (report, None)]
    found: _Targets = [(path, format) for path, format in given if path is not None]
    for path, _ in found:
        require_folder(path)
    return found


def _policy(path: Path | None) -> StudyPolicy | None:
    """The rules in a file; InputError, before anything is sent, where they are none."""
    if path is None:
        return None
    return _validated(StudyPolicy, read_request(path, "policy: an object with rules"))


_Model = TypeVar("_Model", bound=BaseModel)


def _validated(kind: type[_Model], body: dict[str, Any]) -> _Model:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problems = [problem_at(item["loc"], explain(item, kind)) for item in error.errors()]
        raise InputError("; ".join(one.detail for one in problems), problems) from error


def _submitted(file: Path, client: Client) -> Study:
    """Submits the study in a file, with what lies on this machine uploaded."""
    body = read_request(file, "study: an object with base and members")
    _validated(StudyRequest, body).analyses()  # before anything is sent
    for place, folder in _places(body):
        with_uploads(place, client, folder)
    with waiting_for("submitting: the service checks the models and the data sets"):
        return client.submit_study(_validated(StudyRequest, body))


def _places(body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Where a study names models (True) and data sets."""
    learned = (body.get("analysis") or {}).get("learned")
    models = [body["base"], learned.get("benign") if isinstance(learned, dict) else None]
    datasets = [body.get("dataset")]
    for member in body["members"]:
        models.append(member.get("tuned"))
        datasets.append(member.get("dataset"))
    for dataset in [*datasets]:
        datasets.append(dataset.get("reference") if isinstance(dataset, dict) else None)
    yield from ((place, True) for place in models if place is not None)
    yield from ((place, False) for place in datasets if place is not None)


def followed(client: Client, study_id: str, timeout: float | None) -> None:
    """Shows a study until it has ended.

    Raises:
        StudyFailed: it has no report.
        TimeoutError: it has not ended after `timeout` seconds.
    """
    show = _bars if console.is_terminal else _lines
    with told_to_keep_running(study_id, "layerdrift study"):
        last = show(client, study_id, timeout)
    if last.status is not Status.SUCCEEDED:
        raise StudyFailed(last)


def _bars(client: Client, study_id: str, timeout: float | None) -> Study:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        whole_study = bars.add_task("study", total=1.0, detail="")
        for last in client.watch_study(study_id, timeout):
            bars.update(whole_study, completed=last.fraction, detail=study_tables.standing(last))
    return last


def _lines(client: Client, study_id: str, timeout: float | None) -> Study:
    said: dict[str, Status] = {}
    at = time.monotonic()

    def put(line: str) -> None:
        nonlocal at
        at = time.monotonic()
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    for last in client.watch_study(study_id, timeout):
        for one in last.awaited:
            if one.status is not Status.QUEUED and said.get(one.name) is not one.status:
                said[one.name] = one.status
                put(f"{one.name} {one.status}")
        if time.monotonic() - at > LINE_SECONDS:
            put(study_tables.standing(last))
    return last


def _conclude(client: Client, study_id: str, targets: _Targets, policy: StudyPolicy | None, as_json: bool) -> None:
    """Writes and prints, then ends with the code that the verdict stands for."""
    report = client.study_report(study_id)
    verdict = client.gate_study(study_id, policy) if policy is not None else None
    for path, format in targets:
        body = report.model_dump_json(indent=1) if format is None else client.rendered_study_report(study_id, format)
        whole(path, body.encode())
        console.print(f"wrote {path}", highlight=False, soft_wrap=True, markup=False)
    if as_json:
        tables.dump(report if verdict is None else verdict)
    else:
        tables.say(*study_tables.report(report))
        if verdict is not None:
            tables.say(study_tables.verdict(verdict))
    if verdict is not None:
        raise typer.Exit(exits.of(verdict.decision))
