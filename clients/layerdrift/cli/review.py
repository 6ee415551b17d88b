"""`layerdrift review` and `layerdrift gate`: may this fine-tune be promoted?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerdrift import policies
from layerdrift.cli import exits, tables
from layerdrift.cli.exits import reported
from layerdrift.cli.inputs import Asked, submitted
from layerdrift.cli.options import AsJson, Baseline, JunitOut, MarkdownOut, PolicyFile, Timeout, Url
from layerdrift.cli.outputs import Targets, write
from layerdrift.cli.progress import console, follow, said_on_retry
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
from layerdrift.contract.errors import InputError
from layerdrift.contract.plain import STORED
from layerdrift.contract.policy import Policy, Verdict
from layerdrift.contract.report import Report
from layerdrift.gate import evaluate_policy
from layerdrift.render import words
from layerdrift.sdk import Client

HtmlOut = Annotated[Path | None, typer.Option("--html", help="Write the report as an HTML page.")]
ReportOut = Annotated[Path | None, typer.Option("--report", help="Write the report as JSON.")]
PngOut = Annotated[
    Path | None, typer.Option("--png", help="Write the drift curve as PNG. Requires layerdrift[render].")
]
VerdictOut = Annotated[Path | None, typer.Option("--verdict", help="Write the verdict as JSON.")]


class Asking:
    """A policy as it was given, with the file's lines for what is wrong with it.

    The baseline may be given as any reference to an analysis; the service resolves it.
    """

    def __init__(self, path: Path | None, baseline: str | None) -> None:
        self._name = str(path) if path is not None else "the starter policy"
        self._text = path.read_text(encoding="utf-8") if path is not None else policies.starter()
        self.policy: Policy = policies.load(self._text, self._name)
        self._baseline = baseline
        if self.policy.needs_baseline and self.policy.baseline is None and baseline is None:
            raise InputError(f"{self._name} has rules with a baseline: give an analysis with --baseline")

    def of(self, client: Client, analysis_id: str) -> Verdict:
        """The service's verdict."""
        policy = self.policy
        if self._baseline is not None:
            policy = policy.model_copy(update={"baseline": client.get(self._baseline).id})
        try:
            return client.gate(analysis_id, policy)
        except InputError as error:
            raise self._located(error) from error

    def verdict(self, report: Report) -> Verdict:
        """The verdict on a report that lies here."""
        if self.policy.needs_baseline:
            raise InputError("rules with a baseline need the service: give the analysis instead of a file")
        try:
            return evaluate_policy(self.policy, report)
        except InputError as error:
            raise self._located(error) from error

    def _located(self, error: InputError) -> InputError:
        in_rules = error.errors and all(one.pointer.startswith("/rules/") for one in error.errors)
        return policies.located(self._text, self._name, error) if in_rules else error


@reported
def review(
    base: Base = None,
    tuned: Tuned = None,
    dataset: Dataset = None,
    finetune: Finetune = False,
    policy: PolicyFile = None,
    baseline: Baseline = None,
    junit: JunitOut = None,
    markdown: MarkdownOut = None,
    html: HtmlOut = None,
    report: ReportOut = None,
    png: PngOut = None,
    verdict: VerdictOut = None,
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
    timeout: Timeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit an analysis, wait for it, and evaluate a policy: exit code 0 if it passes, 1 if it fails."""
    asking = Asking(policy, baseline)
    targets = Targets(junit, markdown, html, report, png, verdict)
    targets.check()
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
    with Client(url, on_retry=said_on_retry) as client:
        analysis = submitted(asked, client)
        console.print(f"{analysis.id} {analysis.status}: {analysis.name}", highlight=False, markup=False)
        console.print(f"follow it at {client.url}/#/a/{analysis.id}", highlight=False, soft_wrap=True)
        follow(client, analysis.id, timeout)
        _finish(client, analysis.id, asking, targets, as_json)


@reported
def gate(
    analysis: Annotated[
        str,
        typer.Argument(
            metavar="ANALYSIS", help="An analysis (id, start of an id, name or `latest`), or a report's JSON file."
        ),
    ],
    policy: PolicyFile = None,
    baseline: Baseline = None,
    junit: JunitOut = None,
    markdown: MarkdownOut = None,
    verdict: VerdictOut = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a policy on a finished analysis, or on a report's JSON file without a service."""
    asking = Asking(policy, baseline)
    targets = Targets(junit=junit, markdown=markdown, verdict=verdict)
    targets.check()
    path = Path(analysis)
    if path.suffix == ".json" and path.is_file():
        try:
            found = Report.model_validate_json(path.read_bytes(), context=STORED)
        except ValueError as error:
            raise InputError(f"{path} is not a layerdrift report: {error}") from error
        _conclude(found, asking.verdict(found), targets, None, as_json)
    if path.suffix == ".json":
        raise InputError(f"{path} does not exist")
    with Client(url, on_retry=said_on_retry) as client:
        _finish(client, client.get(analysis).id, asking, targets, as_json)


def _finish(client: Client, analysis_id: str, asking: Asking, targets: Targets, as_json: bool) -> None:
    found = asking.of(client, analysis_id)
    html = client.rendered_report(analysis_id, "html") if targets.html is not None else None
    _conclude(client.report(analysis_id), found, targets, html, as_json)


def _conclude(report: Report, found: Verdict, targets: Targets, html: str | None, as_json: bool) -> None:
    """Writes and prints, then ends with the code that the verdict stands for."""
    write(targets, report, found, html)
    if as_json:
        tables.dump(found)
    else:
        tables.say(words.headline(report), *filter(None, [words.outcome(report)]), tables.verdict(found))
    for path in targets.written():
        console.print(f"wrote {path}", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(exits.of(found.decision))
