"""From what is typed to a request: local files and folders are uploaded, options become fields."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from layerdrift.cli.progress import uploading, waiting_for
from layerdrift.cli.submitting import PairOptions, RequestOptions
from layerdrift.contract.analysis import Analysis
from layerdrift.contract.errors import FieldProblem, InputError
from layerdrift.contract.explained import explain
from layerdrift.contract.request import AnalysisRequest
from layerdrift.policies import parsed
from layerdrift.sdk import Client

_REQUEST = "request: an object with base, dataset and tuned or finetune"
_SCHEMES = ("file", "s3", "hf", "mlflow", "models", "upload")


def build(pair: PairOptions, options: RequestOptions, client: Client) -> AnalysisRequest:
    """The request, with what lies on this machine uploaded; InputError where options do not make one."""
    body = _fields(pair, options)
    _checked(body)  # before anything is sent
    dataset = body.get("dataset")
    reference = dataset.get("reference") if isinstance(dataset, dict) else None
    learned = (body.get("analysis") or {}).get("learned")
    benign = learned.get("benign") if isinstance(learned, dict) else None
    models = ((body.get("base"), True), (body.get("tuned"), True), (benign, True))
    for place, folder in (*models, (dataset, False), (reference, False)):
        with_uploads(place, client, folder)
    return _checked(body)


def with_uploads(place: object, client: Client, folder: bool) -> None:
    """Replaces the local path of a model or a data set in a request by that of its upload."""
    if isinstance(place, dict) and isinstance(place.get("uri"), str):
        place["uri"] = as_uri(place["uri"], client, folder)


def submitted(pair: PairOptions, options: RequestOptions, client: Client) -> Analysis:
    """Submits what was asked for, and says so while the service checks it."""
    request = build(pair, options, client)
    with waiting_for("submitting: the service checks the models and the data set"):
        return client.submit(request)


def as_uri(given: str, client: Client, folder: bool) -> str:
    """A URI as it is; a local path as that of its upload."""
    scheme, separator, _ = given.partition(":")
    if separator and scheme in _SCHEMES:
        return given
    try:
        path = Path(given).expanduser()
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown user, a NUL byte
        raise InputError(f"{given!r} is no path, and not a supported URI ({', '.join(_SCHEMES)}:): {error}") from error
    if not there:
        raise InputError(f"there is no file or folder {given}, and it is not a supported URI ({', '.join(_SCHEMES)}:)")
    if folder and path.is_file() and path.suffix != ".zip":
        raise InputError(f"{given} is a file; a checkpoint is a folder with config.json and *.safetensors, or a zip")
    if not folder and path.is_dir():
        raise InputError(f"{given} is a folder; a data set is one file")
    with uploading(path.name) as heard:
        return client.upload(path, heard).uri


def _fields(pair: PairOptions, options: RequestOptions) -> dict[str, Any]:
    body = read_request(options.request, _REQUEST) if options.request is not None else {}
    given = {
        "base.uri": pair.base,
        "tuned.uri": pair.tuned,
        "dataset.uri": pair.dataset,
        "dataset.text_column": options.text_column,
        "dataset.text_pair_column": options.text_pair_column,
        "dataset.label_column": options.label_column,
        "dataset.chat_template": _template(options.chat_template),
        "dataset.max_examples": options.max_examples,
        "name": options.name,
        "seed": options.seed,
    }
    for path, value in given.items():
        if value is not None:
            _put(body, path, value)
    if pair.finetune:
        body.setdefault("finetune", {})
    if options.no_sae:
        _put(body, "analysis.sae", None)
    for tag in options.tag:
        key, separator, value = tag.partition("=")
        if not separator or not key:
            raise InputError(f"--tag {tag}: write key=value")
        body.setdefault("tags", {})[key] = value
    for setting in options.set_:
        path, separator, text = setting.partition("=")
        if not separator:
            raise InputError(f"--set {setting}: write path=value, such as analysis.max_tokens=20000")
        _put(body, path.strip(), _value(text, setting))
    return body


def _template(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error


def read_request(path: Path, what: str) -> dict[str, Any]:
    """The object in a YAML or JSON file; InputError where there is none. what: it should hold, for the message."""
    try:
        body = parsed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(body, dict):
        raise InputError(f"{path} contains no {what}")
    return body


def _value(text: str, setting: str) -> Any:
    try:
        return parsed(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {setting}: the value is not YAML: {error}") from error


def _put(body: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        inside = body.get(parent)
        if not isinstance(inside, dict):
            inside = body[parent] = {}
        body = inside
    body[last] = value


def _checked(body: dict[str, Any]) -> AnalysisRequest:
    try:
        return AnalysisRequest.model_validate(body)
    except ValidationError as error:
        problems = [problem_at(item["loc"], explain(item, AnalysisRequest)) for item in error.errors()]
        raise InputError("; ".join(one.detail for one in problems), problems) from error


def problem_at(where: Iterable[int | str], message: str) -> FieldProblem:
    """What is wrong at a place of a request."""
    parts = [str(part) for part in where]
    detail = f"{'.'.join(parts)}: {message}" if parts else message
    return FieldProblem(pointer="".join(f"/{part}" for part in parts), detail=detail)
