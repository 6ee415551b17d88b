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
from layerdrift.cli.grouped import grouped
from layerdrift.cli.inputs import as_uri, build, submitted
from layerdrift.cli.key_commands import keys_app
from layerdrift.cli.options import AnalysisArgument, AsJson, Timeout, Url
from layerdrift.cli.outputs import drawn, require_folder, whole
from layerdrift.cli.policy_commands import policy_app
from layerdrift.cli.progress import follow, said_on_retry, waiting
from layerdrift.cli.publish_commands import publish_app
from layerdrift.cli.review import gate, review
from layerdrift.cli.study_commands import study_app
from layerdrift.cli.submitting import PairOptions, RequestOptions
from layerdrift.cli.usage_command import usage
from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.errors import InputError
from layerdrift.render import learned, sentences
from layerdrift.sdk import Client

app = typer.Typer(
    name="layerdrift",
    help="Is this fine-tuned model ready to replace its base? Compares two checkpoints layer by layer.",
    epilog="Exit codes: 0 success, 1 policy failed, 2 usage error, 3 service or job error, 4 timeout. "
    "LAYERDRIFT_URL and LAYERDRIFT_API_KEY name the service and the API key.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys_app, name="keys")
app.add_typer(policy_app, name="policy")
app.add_typer(publish_app, name="publish")
app.add_typer(study_app, name="study")
app.command("usage")(usage)
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
    """A client for one command; what it waits for is said on standard error."""
    with Client(url, on_retry=said_on_retry) as client:
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
@grouped
def submit(pair: PairOptions, options: RequestOptions, url: Url = None, as_json: AsJson = False) -> None:
    """Submit an analysis and print its id. Local files and folders are uploaded."""
    with connected(url) as client:
        analysis = submitted(pair, options, client)
    if as_json:
        tables.dump(analysis)
    else:
        tables.put(analysis.id)


@app.command()
@reported
@grouped
def estimate(pair: PairOptions, options: RequestOptions, url: Url = None, as_json: AsJson = False) -> None:
    """Estimate time, memory and disk of an analysis without submitting it. Local files and folders are uploaded."""
    with connected(url) as client:
        found = client.estimate(build(pair, options, client))
    if as_json:
        tables.dump(found)
    else:
        tables.say(*tables.estimate(found))


@app.command()
@reported
def wait(analysis: AnalysisArgument, timeout: Timeout = None, url: Url = None, as_json: AsJson = False) -> None:
    """Wait until an analysis has finished, without progress."""
    with connected(url) as client:
        report = client.wait(analysis, timeout)
    if as_json:
        tables.dump(report)
    else:
        tables.say(sentences.headline(report))


@app.command()
@reported
def watch(analysis: AnalysisArgument, timeout: Timeout = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show the progress of an analysis until it ends. With --json, one line for each event."""
    with connected(url) as client:
        if as_json:
            for event in client.events(analysis, timeout=timeout):
                tables.line({"id": event.id, "event": event.name, "data": event.data})
            client.wait(analysis, timeout=0)
            return
        last = follow(client, analysis, timeout)
        tables.say(sentences.headline(client.report(last.id)))


@app.command()
@reported
def status(analysis: AnalysisArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Show the status of an analysis."""
    with connected(url) as client:
        found = client.get(analysis)
    if as_json:
        tables.dump(found)
        return
    tables.say(*tables.analysis(found))
    if found.error is not None:
        tables.say(f"{found.error.title}: {found.error.detail}")
    if found.queued_before is not None:
        tables.say(waiting(found))


@app.command("list")
@reported
def list_(
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Number of analyses, newest first.")
    ] = 20,
    status: Annotated[Status | None, typer.Option("--status", help="Filter by status.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Filter by part of the name.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Filter by tag: key=value.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List analyses."""
    if tag is not None and not all(tag.partition("=")):
        raise InputError(f"--tag {tag}: write key=value")
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
        Format | None,
        typer.Option("--format", "-f", help="Output format.", show_default="a table, or the suffix of --output"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report to this file.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the HTML page in a browser.")] = False,
    preliminary: Annotated[
        bool, typer.Option("--preliminary", help="Accept the report of an analysis that is still running.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print or save the report of an analysis."""
    if open_ and (as_json or format not in (None, Format.HTML)):
        raise InputError("--open shows the HTML page: omit --json and --format")
    if open_ and output is not None and output.suffix.lower() not in ("", ".html", ".htm"):
        raise InputError("--open shows the HTML page: give --output a name that ends in .html")
    chosen = Format.JSON if as_json else Format.HTML if open_ else format
    if chosen is None and output is not None:
        chosen = _format_of(output)
    if chosen is Format.PNG and output is None:
        raise InputError("a PNG needs a file: give --output")
    if output is not None:
        require_folder(output)
    with connected(url) as client:
        if chosen is None:
            found = client.report(analysis, preliminary)
            about = filter(None, [sentences.pending(found), sentences.headline(found)])
            said = [sentences.outcome(found), sentences.answers(found), sentences.roles(found)]
            tables.say(*about, tables.layers(found, tables.width()), *filter(None, said))
            tables.say(sentences.advice(found), *learned.summary(found))
            tables.say(*(f"{warning.code}: {warning.message}" for warning in found.warnings))
            return
        body = _body(client, analysis, chosen, preliminary)
    if output is None and open_:
        output = Path(f"{analysis}.html")
    if output is None:
        tables.put(body.decode())
        return
    whole(output, body)
    if open_ and not webbrowser.open(output.absolute().as_uri()):
        raise InputError(f"found no browser; the page is in {output}")


def _format_of(path: Path) -> Format:
    try:
        return Format(path.suffix.removeprefix(".").lower())
    except ValueError as error:
        raise InputError(f"{path}: unknown suffix; choose json, html, md or png with --format") from error


def _body(client: Client, analysis: str, format: Format, preliminary: bool) -> bytes:
    if format is Format.JSON:
        return client.report(analysis, preliminary).model_dump_json(indent=1).encode()
    if format is Format.PNG:
        return drawn(client.report(analysis, preliminary))
    return client.rendered_report(analysis, "html" if format is Format.HTML else "md", preliminary).encode()


@app.command()
@reported
def compare(
    analysis: AnalysisArgument,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The analysis it is compared with.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Compare two reports (second minus first)."""
    with connected(url) as client:
        found = client.compare(analysis, other)
    if as_json:
        tables.dump(found)
    else:
        tables.say(tables.comparison(found))


@app.command()
@reported
def cancel(analysis: AnalysisArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel an analysis."""
    with connected(url) as client:
        found = client.cancel(analysis)
    if as_json:
        tables.dump(found)
    else:
        tables.put(f"{found.id} {found.status if found.status.final else 'is stopping'}")


@app.command()
@reported
def rerun(analysis: AnalysisArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Run an analysis again with the service's version of the engine, on the same files."""
    with connected(url) as client:
        found = client.rerun(analysis)
    if as_json:
        tables.dump(found)
    else:
        tables.put(f"{found.id} {found.status}")


@app.command()
@reported
def delete(analysis: AnalysisArgument, url: Url = None, as_json: AsJson = False) -> None:
    """Delete a finished analysis with its report, artifacts and checkpoint."""
    with connected(url) as client:
        client.delete(analysis)
    if as_json:
        tables.dump({"id": analysis, "deleted": True})


@app.command()
@reported
def upload(
    path: Annotated[Path, typer.Argument(help="A data set file or the folder of a checkpoint.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file or a folder and print its URI. Files the service already has are not sent again."""
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
    texts: Annotated[
        list[str], typer.Argument(help="Texts to run through both models; - reads one per line from standard input.")
    ],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Run other texts through both models of a finished analysis: drift by token and layer, and what they say next."""
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
