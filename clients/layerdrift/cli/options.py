"""Options that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from layerdrift.sdk.calls import DEFAULT_URL

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="LAYERDRIFT_URL",
        show_default=DEFAULT_URL,
        help="URL of the service. Its API key is read from LAYERDRIFT_API_KEY.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
AnalysisArgument = Annotated[
    str,
    typer.Argument(metavar="ANALYSIS", help="An analysis: its id, the first characters of it, its name, or `latest`."),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0,
        show_default="none",
        help="Stop waiting after this many seconds (exit code 4). The analysis keeps running.",
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", "-p", help="Policy file, YAML or JSON.", show_default="the starter policy"),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline", help="Earlier analysis for rules with `of_baseline`; overrides the `baseline` of the policy."
    ),
]
JunitOut = Annotated[Path | None, typer.Option("--junit", help="Write the verdict as JUnit XML.")]
MarkdownOut = Annotated[Path | None, typer.Option("--markdown", help="Write the verdict and the report as Markdown.")]
HtmlOut = Annotated[Path | None, typer.Option("--html", help="Write the report as an HTML page.")]
ReportOut = Annotated[Path | None, typer.Option("--report", help="Write the report as JSON.")]
PngOut = Annotated[
    Path | None, typer.Option("--png", help="Write the drift curve as PNG. Requires layerdrift[render].")
]
VerdictOut = Annotated[Path | None, typer.Option("--verdict", help="Write the verdict as JSON.")]


@dataclass(frozen=True)
class PolicyOptions:
    """Which policy, against which earlier analysis."""

    policy: PolicyFile = None
    baseline: Baseline = None
