"""The commands. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from layerdrift import __version__
from layerdrift.cli import exits, tables
from layerdrift.cli.exits import reported
from layerdrift.cli.inputs import Asked, as_uri, build
from layerdrift.cli.key_commands import keys_app
from layerdrift.cli.options import AnalysisArgument, AsJson, Timeout, Url
from layerdrift.cli.outputs import drawn, whole
from layerdrift.cli.policy_commands import policy_app
from layerdrift.cli.progress import follow
from layerdrift.cli.publish_commands import publish_app
from layerdrift.cli.review import gate, review
from layerdrift.cli.submitting import (
    Base,
    Dataset,
    Finetune,
    LabelColumn,
    MaxExamples,
    Name,
    NoSae,
    RequestFile,
    Seed,
    Set,
    Tag,
    TextColumn,
    TextPairColumn,
    Tuned,
)
from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.errors import InputError
from layerdrift.render import words
from layerdrift.sdk import Client

app = typer.Typer(
    name="layerdrift",
    help="Which layers of a fine-tuned transformer changed, how much, and whether it may replace the one it came from.",
    epilog="Exit codes: 0 done or passed, 1 the gate failed, 2 usage, 3 service or job error, 4 timeout.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys_app, name="keys")
app.add_typer(policy_app, name="policy")
app.add_typer(publish_app, name="publish")
app.command("review")(review)
app.command("gate")(gate)


class Format(StrEnum):
    """How a report is shown."""

    JSON = "json"
    HTML = "html"
    MD = "md"
    PNG = "png"


@contextmanager
def connected(url: str | None) -> Iterator[Client]:
    """A client for one command."""
    with Client(url) as client:
        yield client


@app.callback(invoke_without_command=True)
def layerdrift(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """layerdrift."""
    if version:
        tables.put(__version__)
        raise typer.Exit


@app.command()
@reported
def submit(
    base: Base = None,
    tuned: Tuned = None,
    dataset: Dataset = None,
    finetune: Finetune = False,
    request: RequestFile = None,
    text_column: TextColumn = None,
    text_pair_column: TextPairColumn = None,
    label_column: LabelColumn = None,
    max_examples: MaxExamples = None,
    name: Name = None,
    tag: Tag = [],  # noqa: B006 - typer reads it as the default
    seed: Seed = None,
    no_sae: NoSae = False,
    set_: Set = [],  # noqa: B006
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit a pair, or a model to fine-tune; prints the analysis's id. Local files and folders are uploaded."""
    asked = Asked(
        request,
        base,
        tuned,
        finetune,
        dataset,
        text_column,
        text_pair_column,
        label_column,
        max_examples,
        name,
        tag,
        seed,
        no_sae,
        set_,
    )
    with connected(url) as client:
        analysis = client.submit(build(asked, client))
    if as_json:
        tables.dump(analysis)
    else:
        tables.put(analysis.id)


@app.command()
@reported
def wait(analysis: AnalysisArgument, timeout: Timeout = None, url: Url = None, as_json: AsJson = False) -> None:
    """Wait until an analysis has its report, quietly."""
    with connected(url) as client:
        report = client.wait(analysis, timeout)
    if as_json:
        tables.dump(report)
    else:
        tables.say(words.headline(report))


@app.command()
@reported
def watch(analysis: AnalysisArgument, timeout: Timeout = None, url: Url = None, as_json: AsJson = False) -> None:
    """Follow an analysis to its end, stage by stage; with --json a line for each event as it comes."""
    with connected(url) as client:
        if as_json:
            for event in client.events(analysis, timeout=timeout):
                tables.line({"id": event.id, "event": event.name, "data": event.data})
            client.wait(analysis, timeout=0)
            return
        follow(client, analysis, timeout)
        tables.say(words.headline(client.report(analysis)))


@app.command()
@reported
def status(analysis: AnalysisArgument, url: Url = None, as_json: AsJson = False) -> None:
    """How far an analysis has come."""
    with connected(url) as client:
        found = client.get(analysis)
    if as_json:
        tables.dump(found)
        return
    tables.say(tables.analysis(found))
    if found.error is not None:
        tables.say(f"{found.error.title}: {found.error.detail}")


@app.command("list")
@reported
def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, newest first.")] = 20,
    status: Annotated[Status | None, typer.Option("--status", help="Only those that stand so.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only those with this in their name.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only those with this tag: key=value.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List analyses."""
    found: list[Analysis] = []
    with connected(url) as client:
        cursor = None
        while len(found) < limit:
            page = client.list(min(100, limit - len(found)), cursor, status, name, tag and tag.replace("=", ":", 1))
            found += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
    if as_json:
        tables.dump([one.model_dump(mode="json") for one in found])
    else:
        tables.say(tables.analyses(found))


@app.command()
@reported
def report(
    analysis: AnalysisArgument,
    format: Annotated[
        Format | None, typer.Option("--format", "-f", help="A table for people where nothing is said.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it there.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the HTML page in a browser.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """The report of an analysis."""
    if open_ and (as_json or format not in (None, Format.HTML)):
        raise InputError("--open shows the HTML page; leave --json and --format out")
    chosen = Format.JSON if as_json else Format.HTML if open_ else format
    if format is None and not as_json and output is not None:
        chosen = _format_of(output)
    if chosen is Format.PNG and output is None:
        raise InputError("a PNG goes into a file: give --output")
    with connected(url) as client:
        if chosen is None:
            found = client.report(analysis)
            tables.say(words.headline(found), tables.layers(found), *filter(None, [words.outcome(found)]))
            tables.say(words.advice(found), *(f"{one.code}: {one.message}" for one in found.warnings))
            return
        body = _body(client, analysis, chosen)
    if output is None and open_:
        output = Path(f"{analysis}.html")
    if output is None:
        tables.put(body.decode())
        return
    whole(output, body)
    if open_ and not webbrowser.open(output.absolute().as_uri()):
        raise InputError(f"no browser was found; the page is in {output}")


def _format_of(path: Path) -> Format:
    try:
        return Format(path.suffix.removeprefix(".").lower())
    except ValueError as error:
        raise InputError(f"{path}: say with --format whether it is to be json, html, md or png") from error


def _body(client: Client, analysis: str, format: Format) -> bytes:
    if format is Format.JSON:
        return client.report(analysis).model_dump_json(indent=1).encode()
    if format is Format.PNG:
        return drawn(client.report(analysis))
    return client.rendered_report(analysis, "html" if format is Format.HTML else "md").encode()


@app.command()
@reported
def compare(
    analysis: AnalysisArgument,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Id of the analysis it is compared with.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Two reports side by side: the other's numbers less the first one's."""
    with connected(url) as client:
        found = client.compare(analysis, other)
    if as_json:
        tables.dump(found)
    else:
        tables.say(tables.comparison(found))


@app.command()
@reported
def cancel(analysis: AnalysisArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Ask an analysis to stop."""
    with connected(url) as client:
        found = client.cancel(analysis)
    if as_json:
        tables.dump(found)
    else:
        tables.put(f"{found.id} {found.status if found.status.final else 'is stopping'}")


@app.command()
@reported
def delete(analysis: AnalysisArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Forget an analysis that has ended: its report, artifacts and checkpoint."""
    with connected(url) as client:
        client.delete(analysis)
    if as_json:
        tables.dump({"id": analysis, "deleted": True})


@app.command()
@reported
def upload(
    path: Annotated[Path, typer.Argument(help="A data set file, or a checkpoint's folder.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file or a folder; prints the URI to name it by. What the service has is not sent again."""
    with connected(url) as client:
        uri = as_uri(str(path), client, folder=path.is_dir())
    if as_json:
        tables.dump({"uri": uri})
    else:
        tables.put(uri)


@app.command()
@reported
def inspect(
    analysis: AnalysisArgument,
    texts: Annotated[list[str], typer.Argument(help="Texts to send through both models; - reads lines from stdin.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Other texts through the pair of a finished analysis: the drift of each token at each layer."""
    given = typer.get_text_stream("stdin").read().splitlines() if texts == ["-"] else texts
    with connected(url) as client:
        found = client.inspect(analysis, *(text for text in given if text.strip()))
    if as_json:
        tables.dump(found)
    else:
        tables.say(*tables.inspection(found))


def run() -> None:
    """The program."""
    app()


__all__ = ["app", "exits", "run"]
