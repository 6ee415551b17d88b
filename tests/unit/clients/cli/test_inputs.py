"""From what is typed to a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from layerdrift.cli.inputs import as_uri, build, submitted
from layerdrift.cli.submitting import PairOptions, RequestOptions
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.builders.analyses import analysis
from tests.builders.http_service import HttpService

PAIR = PairOptions(base="s3://m/a", tuned="s3://m/b", dataset="s3://d/x.csv")
URIS = ["file:///m/a", "s3://m/a", "hf://o/m", "mlflow://m@champion", "models:/m/3", "upload://up_x"]


def made(pair: PairOptions = PAIR, **options: Any) -> AnalysisRequest:
    with Client("http://service") as client:
        return build(pair, RequestOptions(**options), client)


def refused(pair: PairOptions = PAIR, **options: Any) -> InputError:
    with pytest.raises(InputError) as raised:
        made(pair, **options)
    return raised.value


def request_file(folder: Path, body: Any) -> Path:
    path = folder / "request.yaml"
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


@pytest.fixture
def uploads(service: HttpService) -> HttpService:
    """A service that has every file already, under its name."""

    def known(request: httpx.Request) -> httpx.Response:
        name = json.loads(request.content)["filename"]
        body = {"id": name, "uri": f"upload://{name}", "filename": name, "status": "complete"}
        return httpx.Response(201, json=body | {"created_at": "2026-01-01T00:00:00Z"})

    service.answers["POST /v1/uploads"] = known
    return service


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_stays_as_it_is(service: HttpService, uri: str) -> None:
    with Client("http://service") as client:
        assert as_uri(uri, client, folder=True) == uri
    assert service.seen == []


def test_what_lies_here_is_uploaded_and_the_rest_is_not(uploads: HttpService, checkpoint: Path, tmp_path: Path) -> None:
    texts, general = tmp_path / "a:b.csv", tmp_path / "general.txt"
    texts.write_text("text\nfine\n")
    general.write_text("fine\n")
    given = f"dataset.reference.uri={json.dumps(str(general))}"
    request = made(PairOptions(str(checkpoint), "hf://o/m", str(texts)), set_=[given])
    assert request.tuned is not None
    assert request.dataset.reference is not None
    assert [request.base.uri, request.tuned.uri, request.dataset.uri, request.dataset.reference.uri] == [
        "upload://model.zip",
        "hf://o/m",
        "upload://a:b.csv",
        "upload://general.txt",
    ]
    assert len(uploads.seen) == 3


def test_a_home_folder_is_found(uploads: HttpService, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert made(PairOptions("~/model", "s3://m/b", "s3://d/x.csv")).base.uri == "upload://model.zip"


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("absent", True, "there is no file or folder absent, and it is not a supported URI"),
        ("https://hub/model", True, "it is not a supported URI (file, s3, hf, mlflow, models, upload:)"),
        ("C:\\models\\a", True, "it is not a supported URI"),
        ("texts.csv", True, "texts.csv is a file; a checkpoint is a folder"),
        ("model", False, "model is a folder; a data set is one file"),
        ("empty", True, "contains no .safetensors file"),
        ("~nobody-of-this-name/model", True, "is no path, and not a supported URI"),
        ("m" * 300, True, "is no path, and not a supported URI"),
    ],
)
def test_what_cannot_be_uploaded_says_what_it_is(
    service: HttpService, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: bool, said: str
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    Path("texts.csv").write_text("text\n")
    Path("empty").mkdir()
    with Client("http://service") as client, pytest.raises(InputError) as raised:
        as_uri(name, client, folder)
    assert said in raised.value.detail
    assert service.seen == []


def test_a_zip_is_a_checkpoint_too(uploads: HttpService, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    with Client("http://service") as client:
        assert as_uri(str(tmp_path / "model.zip"), client, folder=True) == "upload://model.zip"


def test_nothing_is_uploaded_for_a_request_that_is_none(uploads: HttpService, checkpoint: Path) -> None:
    error = refused(PairOptions(base=str(checkpoint)), seed=-1)
    assert {one.pointer for one in error.errors} == {"/dataset", "/seed"}
    assert uploads.seen == []


def test_a_variable_of_the_shell_that_is_empty_is_not_the_folder_one_stands_in(uploads: HttpService) -> None:
    error = refused(PairOptions(base="", tuned="s3://m/b", dataset="s3://d/x.csv"))
    assert [(one.pointer, one.detail) for one in error.errors] == [("/base/uri", "base.uri: must not be empty")]
    assert uploads.seen == []


def test_options_become_the_fields_they_are_named_after() -> None:
    request = made(
        text_column="body",
        text_pair_column="question",
        label_column="stars",
        max_examples=300,
        name="nightly",
        seed=7,
        no_sae=True,
        tag=["team=search", "note=a=b", "empty="],
    )
    data = request.dataset
    assert (data.text_column, data.text_pair_column, data.label_column, data.max_examples) == (
        "body",
        "question",
        "stars",
        300,
    )
    assert (request.name, request.seed, request.analysis.sae) == ("nightly", 7, None)
    assert request.tags == {"team": "search", "note": "a=b", "empty": ""}


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("analysis.max_tokens=20000", lambda request: request.analysis.max_tokens == 20_000),
        ("analysis.sae=null", lambda request: request.analysis.sae is None),
        ("analysis.noise_floors=[numerical]", lambda request: request.analysis.noise_floors == ["numerical"]),
        ("name=a=b", lambda request: request.name == "a=b"),
        (" seed =3", lambda request: request.seed == 3),
        ("finetune.learning_rate=2e-5", lambda request: request.finetune.learning_rate == 2e-5),
    ],
    ids=["number", "null", "list", "equals sign", "spaces", "small number"],
)
def test_any_field_can_be_set_to_any_value(setting: str, read: Any) -> None:
    pair = PairOptions("s3://m/a", None, "s3://d/x.csv", finetune=True) if setting.startswith("finetune") else PAIR
    assert read(made(pair, set_=[setting]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"set_": ["analysis.max_tokens"]}, "--set analysis.max_tokens: write path=value"),
        ({"set_": ["seed=[1"]}, "--set seed=[1: the value is not YAML"),
        ({"set_": ["name=2024-13-45"]}, "--set name=2024-13-45: the value is not YAML"),
        ({"set_": ["analysis.max_lenght=9"]}, "there is no field 'max_lenght'; did you mean max_length?"),
        ({"set_": ["=3"]}, "there is no field ''"),
        ({"tag": ["team"]}, "--tag team: write key=value"),
        ({"tag": ["=x"]}, "--tag =x: write key=value"),
    ],
    ids=["no value", "no YAML", "no date", "mistyped", "no path", "no equals sign", "no key"],
)
def test_an_option_that_cannot_be_read_is_named(options: dict[str, Any], said: str) -> None:
    assert said in refused(**options).detail


def test_of_options_and_a_file_the_options_hold_and_the_rest_is_kept(tmp_path: Path) -> None:
    body = {
        "base": {"uri": "s3://m/old"},
        "tuned": {"uri": "s3://m/b"},
        "dataset": {"uri": "s3://d/x.csv", "text_column": "body"},
        "tags": {"team": "search", "kept": "yes"},
        "analysis": {"max_tokens": 500},
    }
    given = request_file(tmp_path, body)
    request = made(PairOptions(base="s3://m/new"), request=given, tag=["team=ads"], set_=["analysis.max_length=64"])
    assert (request.base.uri, request.dataset.text_column) == ("s3://m/new", "body")
    assert request.tags == {"team": "ads", "kept": "yes"}
    assert (request.analysis.max_tokens, request.analysis.max_length) == (500, 64)


def test_a_fine_tune_that_a_file_describes_keeps_its_settings(tmp_path: Path) -> None:
    body = {"base": {"uri": "s3://m/a"}, "dataset": {"uri": "s3://d/x.csv"}, "finetune": {"epochs": 2}}
    request = made(PairOptions(finetune=True), request=request_file(tmp_path, body))
    assert request.finetune is not None
    assert request.finetune.epochs == 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("base: [", "is neither YAML nor JSON"),
        ("", "contains no request"),
        ("- base", "contains no request"),
        ("base: 2024-13-45", "is neither YAML nor JSON"),
    ],
    ids=["no YAML", "empty", "list", "no date"],
)
def test_a_file_that_holds_no_request_is_refused(tmp_path: Path, body: str, said: str) -> None:
    assert said in refused(request=request_file(tmp_path, body)).detail


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_a_request_in_json_keeps_every_character(tmp_path: Path, indent: int | str | None) -> None:
    body = json.dumps({"name": "😀 great"}, indent=indent)
    assert made(request=request_file(tmp_path, body)).name == "😀 great"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "request.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is neither YAML nor JSON" in refused(request=path).detail


def test_what_is_submitted_is_what_was_built(service: HttpService, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers["POST /v1/analyses"] = analysis("queued")
    with Client("http://service") as client:
        assert submitted(PAIR, RequestOptions(seed=4), client) == analysis("queued")
    assert AnalysisRequest.model_validate(service.sent()) == made(seed=4)
    assert capsys.readouterr().err == "submitting: the service checks the models and the data set\n"
