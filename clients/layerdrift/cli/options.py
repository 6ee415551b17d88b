"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="LAYERDRIFT_URL", help="Of the service; http://127.0.0.1:8000 where nothing is said."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON on standard output.")]
AnalysisArgument = Annotated[str, typer.Argument(metavar="ANALYSIS", help="Id of an analysis: an_…")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="Seconds until it is given up (exit 4); the analysis goes on."),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", "-p", help="Policy file, YAML or JSON; `starter` where none is given.", show_default=False
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option("--baseline", help="Id of an earlier analysis for rules with of_baseline; before the policy's own."),
]
JunitOut = Annotated[Path | None, typer.Option("--junit", help="Write the verdict as JUnit XML.")]
MarkdownOut = Annotated[Path | None, typer.Option("--markdown", help="Write verdict and report as Markdown.")]
