"""A review in MLflow: metrics by layer, the report's files, and the verdict as tags of the model version.

Needs layerdrift[mlflow]. The server is the one that MLFLOW_TRACKING_URI names, as with MLflow's own tools.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from layerdrift.contract.errors import InputError, LayerdriftError
from layerdrift.contract.policy import Verdict
from layerdrift.contract.report import Report
from layerdrift.integrations.numbers import of_layers
from layerdrift.render import markdown
from mlflow import MlflowClient

QUEUED_TAG, ANALYSIS_TAG, VERDICT_TAG, URL_TAG, ERROR_TAG = (
    f"layerdrift.{name}" for name in ("queued_at", "analysis_id", "verdict", "report_url", "error")
)
_FOLDER = "layerdrift"


class MlflowError(LayerdriftError):
    """MLflow did not do what it was asked for."""

    kind = "mlflow"
    title = "Refused by MLflow"


@dataclass(frozen=True)
class Version:
    """A model version: `name` and its number."""

    name: str
    number: str

    @classmethod
    def of(cls, uri: str, client: MlflowClient) -> Version:
        """From `models:/name/3`, `mlflow://name@alias` and the like; InputError where it is none, or is not there."""
        path = uri.removeprefix("mlflow://").removeprefix("models:/").strip("/")
        name, separator, alias = path.partition("@")
        try:
            if separator:
                found = client.get_model_version_by_alias(name.strip("/"), alias)
            else:
                name, _, number = path.rpartition("/")
                if not name:
                    raise InputError(f"{uri}: write models:/name/3 or models:/name@alias")
                found = client.get_model_version(name, number)
        except MlflowException as error:
            raise InputError(f"{uri} was not found in MLflow: {error.message}") from error
        return cls(found.name, str(found.version))

    @property
    def uri(self) -> str:
        """What requests name it by."""
        return f"mlflow://{self.name}/{self.number}"


def write_back(client: MlflowClient, version: Version, report: Report, verdict: Verdict, html: str, url: str) -> str:
    """Writes a review to a version and to the run that made it; a run of its own where none did. Returns the run's id.

    Args:
        url: where people find the report.

    Raises:
        MlflowError: the server refused it.
    """
    try:
        run = client.get_model_version(version.name, version.number).run_id or _own_run(client, version)
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value, step in measurements(report)]
        for first in range(0, len(metrics), 1000):  # what MLflow takes at once
            client.log_batch(run, metrics=metrics[first : first + 1000])
        with tempfile.TemporaryDirectory(prefix="layerdrift-") as folder:
            for name, text in (
                ("report.json", report.model_dump_json(indent=1)),
                ("report.html", html),
                ("report.md", markdown.render(report)),
                ("verdict.json", verdict.model_dump_json(indent=1)),
            ):
                path = Path(folder) / name
                path.write_text(text, encoding="utf-8")
                client.log_artifact(run, str(path), _FOLDER)
        tags = {
            ANALYSIS_TAG: report.analysis_id,
            URL_TAG: url,
            VERDICT_TAG: verdict.decision,
        }  # the last one says: done
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.number, key, value)
        if ERROR_TAG in client.get_model_version(version.name, version.number).tags:  # of an earlier try
            client.delete_model_version_tag(version.name, version.number, ERROR_TAG)
    except MlflowException as error:
        raise MlflowError(f"{version.uri}: {error.message}") from error
    return str(run)


def measurements(report: Report) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of each metric; steps are layers, so that MLflow draws curves over depth."""
    report.require_complete()
    for index, values in enumerate(of_layers(report)):
        for name, value in values.items():
            yield f"layerdrift.{name}", value, index
    yield "layerdrift.freeze_first", float(report.recommendation.freeze_first), 0
    yield "layerdrift.largest_drift", max(layer.drift for layer in report.layers), 0


def _own_run(client: MlflowClient, version: Version) -> str:
    """A run for a version that no run made."""
    found = client.get_experiment_by_name(_FOLDER)
    experiment = found.experiment_id if found else client.create_experiment(_FOLDER)
    run = client.create_run(experiment, run_name=f"{version.name} {version.number}")
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def waiting(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Versions of a model whose review was asked for or begun and has neither verdict nor error yet, oldest first."""
    found = client.search_model_versions(f"name = '{name}'", max_results=1000)
    begun = [one for one in found if {QUEUED_TAG, ANALYSIS_TAG} & set(one.tags)]
    return sorted(
        (one for one in begun if not {VERDICT_TAG, ERROR_TAG} & set(one.tags)), key=lambda one: int(one.version)
    )
