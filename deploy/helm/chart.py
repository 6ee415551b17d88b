"""Renders the chart with Helm, and holds it against the schemas of Kubernetes, KEDA and Prometheus' operator.

Runs in .venv-chart, which has these (deploy/helm/requirements.txt): `make manifests` writes deploy/kubernetes; tests
send questions as JSON on standard input and read JSON answers.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from helm_python import Chart, HelmError

HELM = Path(__file__).resolve().parent
CHART = HELM / "layerdrift"
MANIFESTS = HELM.parent / "kubernetes"
KUBERNETES = "1.34"

_CUSTOM = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
"""Modules with a model for each kind of an API group that is not Kubernetes' own."""


def rendered(values: dict[str, Any], name: str = "layerdrift", namespace: str = "layerdrift") -> dict[str, str]:
    """What each template becomes. HelmError: the values cannot work."""
    with Chart.load(CHART) as chart:
        files: dict[str, str] = chart.render(values, name=name, namespace=namespace)
    return files


def documents(files: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The objects in all files but the notes, in the order of their files."""
    for file in sorted(files):
        if not file.endswith(".txt"):
            yield from (found for found in yaml.safe_load_all(files[file]) if found)


def wrong(found: dict[str, Any]) -> list[str]:
    """What the schema of an object's kind has against it; a field that it does not know is wrong too."""
    what = f"{found.get('kind')} {found.get('metadata', {}).get('name')}"
    if found.get("apiVersion") in _CUSTOM:
        validator = jsonschema.Draft202012Validator(_schema(found["apiVersion"], found["kind"]))
        return [f"{what}: {error.json_path}: {error.message}" for error in validator.iter_errors(found)]
    try:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [f"{what}: {error}"]
    return []


@cache
def _schema(api_version: str, kind: str) -> dict[str, Any]:
    model = getattr(importlib.import_module(_CUSTOM[api_version]), kind)
    schema: dict[str, Any] = model.model_json_schema(by_alias=True)
    _close(schema)
    return schema


def _close(schema: Any) -> None:
    """Makes unknown fields errors, as Kubernetes' strict validation does."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _close(part)
    elif isinstance(schema, list):
        for part in schema:
            _close(part)


def write_manifests() -> None:
    """Writes deploy/kubernetes/layerdrift.yaml from the values beside it."""
    (MANIFESTS / "layerdrift.yaml").write_text(manifests())


def manifests() -> str:
    """Plain manifests of the values in deploy/kubernetes, for `kubectl apply`."""
    values = yaml.safe_load((MANIFESTS / "values.yaml").read_text())
    files = rendered(values)
    objects = list(documents(files))
    errors = [error for found in objects for error in wrong(found)]
    if errors:
        raise SystemExit("\n".join(errors))
    for found in objects:
        _forget_helm(found)
    head = (
        "# Written by `make manifests` from the chart in deploy/helm and the values beside this file; do not edit it.\n"
    )
    return head + yaml.safe_dump_all(objects, sort_keys=False, width=120)


def _forget_helm(part: Any) -> None:
    if isinstance(part, dict):
        for name in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
            part.pop(name, None)
        for value in part.values():
            _forget_helm(value)
    elif isinstance(part, list):
        for value in part:
            _forget_helm(value)


def answers(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """To `values`: `files`, `documents`, `errors`, or the `refusal`; to `documents`: `errors`; to {}: `manifests`."""
    return [_answer(question) for question in questions]


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    if not question:
        return {"manifests": manifests()}
    files: dict[str, str] = {}
    objects = question.get("documents")
    if objects is None:
        try:
            files = rendered(question["values"], name="team", namespace="ml")
        except HelmError as error:
            return {"refusal": str(error)}
        objects = list(documents(files))
    return {"files": files, "documents": objects, "errors": [error for found in objects for error in wrong(found)]}


if __name__ == "__main__":
    if sys.argv[1:] == ["manifests"]:
        write_manifests()
    else:
        json.dump(answers(json.load(sys.stdin)), sys.stdout, default=str)
