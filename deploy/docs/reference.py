"""An mkdocs hook: reference pages made from the schemas, the routes, the command line and the settings as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backends.settings import Settings
from layerdrift.cli.main import app as cli
from layerdrift.contract.analysis import Analysis
from layerdrift.contract.policy import Policy, Verdict
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import Study, StudyRequest
from layerdrift.contract.study_policy import StudyPolicy, StudyVerdict
from layerdrift.contract.study_report import StudyReport
from layerdrift.contract.upload import Upload, UploadRequest
from service.app import build_server

_METHODS = ("get", "post", "put", "delete")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    pages = {
        "report": models("Report", "What `GET /v1/analyses/{id}/report` answers.", Report),
        "request": models("Request", "What `POST /v1/analyses` takes.", AnalysisRequest, UploadRequest),
        "policy": models("Policy and verdict", "What the gate takes and answers.", Policy, Verdict),
        "study": models(
            "Study",
            "What `POST /v1/studies` takes, what it and the list answer, and the report.",
            StudyRequest,
            Study,
            StudyReport,
            StudyPolicy,
            StudyVerdict,
        ),
        "analysis": models("Analysis", "What the list and the status answer.", Analysis, Upload),
        "api": api(),
        "cli": command_line(),
        "settings": settings(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def models(title: str, what: str, *roots: type[BaseModel]) -> str:
    """A section for each model that can be reached from these, with its fields."""
    parts = [f"# {title}", what]
    for model in _reached(roots):
        said = (model.__doc__ or "").strip().split("\n\n")
        parts += [f"## {model.__name__}", "\n\n".join(" ".join(part.split()) for part in said)]
        parts.append(_table(["field", "type", "default", "meaning"], _fields(model)))
    return "\n\n".join(parts) + "\n"


def _reached(roots: tuple[type[BaseModel], ...]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    due = list(roots)
    while due:
        model = due.pop(0)
        if model not in found:
            found.append(model)
            due += [inside for field in model.model_fields.values() for inside in _inside(field.annotation)]
    return found


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _inside(argument)


def _fields(model: type[BaseModel]) -> Iterator[list[str]]:
    schema = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        yield [f"`{name}`", _type(schema[name]), _default(field), field.description or ""]


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words, with its range."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if not name.startswith(("Status", "StageName")) else f"`{name}`"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_type(schema['additionalProperties'])}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([schema.get("type", "any"), *limits])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "—"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{value!r}`" if value not in ("", [], {}) else "empty"


def api() -> str:
    """Every call, and the statuses that it can answer."""
    schema = build_server(Settings()).app.openapi()
    parts = ["# HTTP API", "The same as OpenAPI: `/openapi.json` of a running service; a page to try it: `/docs`."]
    for path, calls in sorted(schema["paths"].items()):
        for method in _METHODS:
            if method not in calls:
                continue
            call = calls[method]
            parts += [f"## {method.upper()} {path}", call.get("description") or call.get("summary", "")]
            given = [
                [f"`{one['name']}`", one["in"], _type(one.get("schema", {})).replace("(#", "(analysis.md#"),
                 one.get("description", "")]
                for one in call.get("parameters", [])
            ]  # fmt: skip
            if given:
                parts.append(_table(["parameter", "in", "type", "meaning"], given))
            answers = [[status, one.get("description", "")] for status, one in sorted(call["responses"].items())]
            parts.append(_table(["status", "meaning"], answers))
    return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """Every command with its options."""
    parts = ["# Command line", "What `layerdrift --help` says, command by command."]
    parts += _commands("layerdrift", typer.main.get_command(cli))
    return "\n\n".join(parts) + "\n"


def _commands(name: str, command: Any) -> Iterator[str]:
    inside = getattr(command, "commands", {})
    if not inside:
        yield f"## {name}"
        yield " ".join((command.help or "").split())
        rows = []
        for one in command.params:
            written = ", ".join(f"`{option}`" for option in [*one.opts, *one.secondary_opts])
            if one.param_type_name == "argument":
                written = f"`{one.metavar or one.name.upper()}`"
            rows.append([written, " ".join((getattr(one, "help", "") or "").split())])
        if rows:
            yield _table(["option", "meaning"], rows)
    for part, found in inside.items():
        yield from _commands(f"{name} {part}", found)


def settings() -> str:
    """Every setting of the service and the workers."""
    rows = [
        [f"`LAYERDRIFT_{name.upper()}`", _default(field).replace(str(Path.cwd()), "."), field.description or ""]
        for name, field in Settings.model_fields.items()
    ]
    parts = [
        "# Settings",
        "Environment variables of the service and the workers.",
        _table(["variable", "default", "meaning"], rows),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
