"""`layerdrift publish`: a finished review where others see it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from layerdrift.cli import tables
from layerdrift.cli.exits import reported
from layerdrift.cli.grouped import grouped
from layerdrift.cli.options import AnalysisArgument, AsJson, PolicyFile, PolicyOptions, Url
from layerdrift.cli.outputs import drawn, summary
from layerdrift.cli.progress import said_on_retry
from layerdrift.cli.review import Asking
from layerdrift.contract.errors import InputError, UnavailableError, UnsupportedError
from layerdrift.contract.policy import Verdict
from layerdrift.integrations.comments import GitHubPull, GitLabMerge, Thread, comment
from layerdrift.sdk import Client

publish_app = typer.Typer(
    help="Publish a finished review: pull requests, MLflow, model cards, W&B.", no_args_is_help=True
)

Picture = Annotated[
    bool, typer.Option("--picture/--no-picture", help="Show the drift curve. Requires layerdrift[render].")
]
VerdictIn = Annotated[
    Path | None,
    typer.Option(
        "--verdict", help="Use this verdict, written by `layerdrift review`, instead of evaluating the policy."
    ),
]
CommentName = Annotated[
    str, typer.Option("--comment-name", help="Name of the comment; one comment per name is kept up to date.")
]


@publish_app.command()
@reported
@grouped
def github(
    analysis: AnalysisArgument,
    policy: PolicyOptions,
    verdict: VerdictIn = None,
    picture: Picture = True,
    comment_name: CommentName = "review",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Comment on the pull request that this GitHub Actions run belongs to."""
    thread = GitHubPull.here()
    with thread.http:
        _comment(thread, analysis, _judging(policy, verdict), picture, comment_name, url, as_json)


@publish_app.command()
@reported
@grouped
def gitlab(
    analysis: AnalysisArgument,
    policy: PolicyOptions,
    verdict: VerdictIn = None,
    picture: Picture = True,
    comment_name: CommentName = "review",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Comment on the merge request that this GitLab pipeline belongs to."""
    thread = GitLabMerge.here()
    with thread.http:
        _comment(thread, analysis, _judging(policy, verdict), picture, comment_name, url, as_json)


Judging = Callable[[Client, str], Verdict]


def _judging(policy: PolicyOptions, verdict: Path | None) -> Judging:
    """Where the verdict comes from: a file that a review wrote, or the service, now."""
    if verdict is None:
        return Asking(policy).of
    try:
        written = Verdict.model_validate_json(verdict.read_bytes())
    except ValueError as error:
        raise InputError(f"{verdict} is not a verdict: {error}") from error

    def of(_client: Client, analysis: str) -> Verdict:
        if written.analysis_id != analysis:
            raise InputError(f"{verdict} is the verdict for {written.analysis_id}, not for {analysis}")
        return written

    return of


def _comment(
    thread: Thread, analysis: str, judging: Judging, picture: bool, name: str, url: str | None, as_json: bool
) -> None:
    with Client(url, on_retry=said_on_retry) as client:
        analysis = client.get(analysis).id
        report, verdict = client.report(analysis), judging(client, analysis)
    place = comment(thread, name, summary(report, verdict), drawn(report) if picture else None, analysis)
    _done(place, as_json)


@publish_app.command()
@reported
@grouped
def mlflow(
    analysis: AnalysisArgument,
    version: Annotated[str, typer.Option("--version", help="The model version: models:/name/3 or models:/name@alias.")],
    policy: PolicyOptions,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Write metrics by layer, the report and the verdict to an MLflow model version (MLFLOW_TRACKING_URI)."""
    module, registry = _loaded("mlflow"), _mlflow_client()
    asking = Asking(policy)
    where = module.Version.of(version, registry)
    with Client(url, on_retry=said_on_retry) as client:
        analysis = client.get(analysis).id
        report, verdict = client.report(analysis), asking.of(client, analysis)
        html, link = client.rendered_report(analysis, "html"), f"{client.url}/v1/analyses/{analysis}/report"
    run = module.write_back(registry, where, report, verdict, html, link)
    _done(f"{where.uri}, run {run}", as_json)


@publish_app.command()
@reported
@grouped
def card(
    analysis: AnalysisArgument,
    file: Annotated[Path, typer.Option("--file", help="The model card; created if it does not exist.")] = Path(
        "README.md"
    ),
    repository: Annotated[
        str | None, typer.Option("--push", help="Push it to this hub repository: owner/name.")
    ] = None,
    policy: PolicyFile = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Add a section with the numbers to a Hugging Face model card; with --policy, the verdict too."""
    module = _loaded("model_card", "hub")
    with Client(url, on_retry=said_on_retry) as client:
        report = client.report(analysis)
        verdict = Asking(PolicyOptions(policy)).of(client, analysis) if policy is not None else None
    made = module.put(file, report, verdict)
    if repository is not None:
        made.push_to_hub(repository)
    _done(str(file), as_json)


@publish_app.command()
@reported
@grouped
def wandb(
    analysis: AnalysisArgument,
    project: Annotated[str, typer.Option("--project", help="Project in W&B.")] = "layerdrift",
    run_id: Annotated[str | None, typer.Option("--run", help="Id of an existing run to log into.")] = None,
    policy: PolicyFile = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Log curves over layers, a summary and the report to Weights & Biases (WANDB_API_KEY, WANDB_MODE)."""
    module = _loaded("wandb")
    with Client(url, on_retry=said_on_retry) as client:
        report, html = client.report(analysis), client.rendered_report(analysis, "html")
        verdict = Asking(PolicyOptions(policy)).of(client, analysis) if policy is not None else None
    try:
        with module.opened(project, report, run_id) as run:
            module.log(run, report, verdict, html)
            _done(run.url or str(run.dir), as_json)
    except module.FAILURES as error:
        raise UnavailableError(f"W&B: {error}") from error


def _done(place: str, as_json: bool) -> None:
    if as_json:
        tables.dump({"published": place})
    else:
        tables.put(place)


def _loaded(name: str, extra: str | None = None) -> Any:
    """An integration's module; UnsupportedError where what it needs is not installed."""
    try:
        return importlib.import_module(f"layerdrift.integrations.{name}")
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"this needs the extra {extra or name}: pip install './clients[{extra or name}]' in a checkout ({error})"
        ) from error


def _mlflow_client() -> Any:
    from mlflow import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise InputError("MLFLOW_TRACKING_URI must name the MLflow server")
    return MlflowClient(uri)


@publish_app.command("mlflow-receiver")
@reported
@grouped
def mlflow_receiver(
    reviews: Annotated[
        Path, typer.Argument(help="Configuration: which models to review and how, see clients/mlflow/reviews.yaml.")
    ],
    host: Annotated[str, typer.Option("--host", help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1024, max=65535)] = 8100,
    secret: Annotated[
        str,
        typer.Option("--secret", envvar="LAYERDRIFT_MLFLOW_WEBHOOK_SECRET", help="Secret of the webhook in MLflow."),
    ] = "",
    url: Url = None,
) -> None:
    """Receive MLflow registry webhooks: review each new model version and write the verdict back."""
    if len(secret) < 16:
        raise InputError("set LAYERDRIFT_MLFLOW_WEBHOOK_SECRET to the secret of the webhook, 16 characters or more")
    module = _loaded("mlflow_receiver", "mlflow")
    module.serve(reviews, url, _mlflow_client(), secret, host, port)
