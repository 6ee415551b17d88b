"""A review in Weights & Biases: curves over layers, a summary, the report as an artifact. Needs layerdrift[wandb]."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import wandb

from layerdrift.contract.policy import Verdict
from layerdrift.contract.report import Report
from layerdrift.integrations.numbers import of_layers

_LAYER = "layerdrift/layer"

FAILURES = (wandb.errors.Error,)
"""What W&B raises where it cannot be used: no API key, no connection, no such project."""


@contextmanager
def opened(project: str, report: Report, run_id: str | None) -> Iterator[wandb.Run]:
    """A run of its own for a report, or one that is there already; finished when this closes."""
    name = report.name or report.analysis_id
    with wandb.init(
        project=project, name=None if run_id else name, id=run_id, resume="allow" if run_id else None
    ) as run:
        yield run


def log(run: wandb.Run, report: Report, verdict: Verdict | None, html: str) -> None:
    """Logs into a run that is open."""
    report.require_complete()
    run.define_metric(_LAYER)
    run.define_metric("layerdrift/*", step_metric=_LAYER)
    for index, values in enumerate(of_layers(report)):
        run.log({_LAYER: index} | {f"layerdrift/{name}": value for name, value in values.items()})
    run.summary["layerdrift/analysis_id"] = report.analysis_id
    run.summary["layerdrift/freeze_first"] = report.recommendation.freeze_first
    run.summary["layerdrift/largest_drift"] = max(layer.drift for layer in report.layers)
    if verdict is not None:
        run.summary["layerdrift/verdict"] = verdict.decision
    artifact = wandb.Artifact(f"layerdrift-{report.analysis_id}", type="layer-drift-report")
    with tempfile.TemporaryDirectory(prefix="layerdrift-") as folder:
        for name, text in (("report.json", report.model_dump_json(indent=1)), ("report.html", html)):
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            artifact.add_file(str(path), name=name)
        run.log_artifact(artifact)
