"""`layerdrift review` and `layerdrift gate`: may this fine-tune be promoted?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layerdrift import policies
from layerdrift.cli import exits, tables
from layerdrift.cli.exits import reported
from layerdrift.cli.grouped import grouped
from layerdrift.cli.inputs import submitted
from layerdrift.cli.options import AsJson, PolicyOptions, Timeout, Url
from layerdrift.cli.outputs import Targets, VerdictTargets, write
from layerdrift.cli.progress import console, follow, said_on_retry
from layerdrift.cli.submitting import PairOptions, RequestOptions
from layerdrift.contract.errors import InputError
from layerdrift.contract.plain import STORED
from layerdrift.contract.policy import Policy, Verdict
from layerdrift.contract.report import Report
from layerdrift.gate import evaluate_policy
from layerdrift.render import sentences
from layerdrift.sdk import Client


class Asking:
    """A policy as it was given, with the file's lines for what is wrong with it.

    The baseline may be given as any reference to an analysis; the service resolves it.
    """

    def __init__(self, options: PolicyOptions) -> None:
        path, baseline = options.policy, options.baseline
        self._given = path is not None
        self._name = str(path) if path is not None else "the starter policy"
        self._text = path.read_text(encoding="utf-8") if path is not None else policies.starter()
        self.policy: Policy = policies.load(self._text, self._name)
        self._baseline = baseline
        if self.policy.needs_baseline and self.policy.baseline is None and baseline is None:
            raise InputError(f"{self._name} has rules with a baseline: give an analysis with --baseline")

    def of(self, client: Client, analysis_id: str) -> Verdict:
        """The service's verdict."""
        if not self._given:
            self._start_for(client.report(analysis_id))
        policy = self.policy
        if self._baseline is not None:
            policy = policy.model_copy(update={"baseline": client.get(self._baseline).id})
        try:
            return client.gate(analysis_id, policy)
        except InputError as error:
            raise self._located(error) from error

    def verdict(self, report: Report) -> Verdict:
        """The verdict on a report that lies here."""
        if not self._given:
            self._start_for(report)
        if self.policy.needs_baseline:
            raise InputError("rules with a baseline need the service: give the analysis instead of a file")
        try:
            return evaluate_policy(self.policy, report)
        except InputError as error:
            raise self._located(error) from error

    def _start_for(self, report: Report) -> None:
        """Takes the starter policy for what was compared."""
        self._text = policies.starter(policies.starter_for(report))
        self.policy = policies.load(self._text, self._name)

    def _located(self, error: InputError) -> InputError:
        in_rules = error.errors and all(one.pointer.startswith("/rules/") for one in error.errors)
        return policies.located(self._text, self._name, error) if in_rules else error


@reported
@grouped
def review(
    pair: PairOptions,
    policy: PolicyOptions,
    targets: Targets,
    options: RequestOptions,
    timeout: Timeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit an analysis, wait for it, and evaluate a policy: exit code 0 if it passes, 1 if it fails."""
    asking = Asking(policy)
    targets.check()
    with Client(url, on_retry=said_on_retry) as client:
        analysis = submitted(pair, options, client)
        console.print(f"{analysis.id} {analysis.status}: {analysis.name}", highlight=False, markup=False)
        console.print(f"follow it at {client.url}/#/a/{analysis.id}", highlight=False, soft_wrap=True)
        follow(client, analysis.id, timeout)
        _finish(client, analysis.id, asking, targets, as_json)


@reported
@grouped
def gate(
    analysis: Annotated[
        str,
        typer.Argument(
            metavar="ANALYSIS", help="An analysis (id, start of an id, name or `latest`), or a report's JSON file."
        ),
    ],
    policy: PolicyOptions,
    outputs: VerdictTargets,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a policy on a finished analysis, or on a report's JSON file without a service."""
    asking, targets = Asking(policy), outputs.targets()
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
        said = [sentences.outcome(report), sentences.answers(report), sentences.roles(report)]
        tables.say(sentences.headline(report), *filter(None, said), tables.verdict(found))
    for path in targets.written():
        console.print(f"wrote {path}", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(exits.of(found.decision))
